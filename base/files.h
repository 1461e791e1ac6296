// Files read by position and written so that a reader never sees half of one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/descriptor.h"

namespace sinklora {

// A file opened for reading. pread only: no mapping, so a file that shrinks under us is an error and not a
// SIGBUS.
class ReadFile {
 public:
  explicit ReadFile(const std::filesystem::path& path);

  int64_t size() const { return size_; }
  const std::filesystem::path& path() const { return path_; }
  // Fills `out` from `offset`; throws Error(input) when the file ends before.
  void read(int64_t offset, std::span<std::byte> out) const;
  // Reads up to out.size() bytes; returns how many there were.
  int64_t read_some(int64_t offset, std::span<std::byte> out) const;

 private:
  std::filesystem::path path_;
  Descriptor descriptor_;
  int64_t size_ = 0;
};

// A file written under a temporary name in the same folder; commit() makes it durable and renames it into
// place. Without commit() nothing is left behind.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  void commit();

 private:
  std::filesystem::path path_, temporary_;
  Descriptor descriptor_;
};

// A file to which whole lines are added.
class AppendFile {
 public:
  explicit AppendFile(std::filesystem::path path);
  void write(std::string_view text);
  void sync();  // until then a crash of the machine may leave anything

 private:
  std::filesystem::path path_;
  Descriptor descriptor_;
};

// A folder filled under a temporary name beside `path`; commit() syncs every file in it and renames it into
// place. What earlier ones of this name, killed, have left is removed.
class AtomicDirectory {
 public:
  enum class Existing : uint8_t { refuse, replace };  // replace: at one blow, by commit()
  // Throws Error(usage) when `path` exists already and is not to be replaced, or its parent cannot be
  // written.
  explicit AtomicDirectory(std::filesystem::path path, Existing existing = Existing::refuse);
  ~AtomicDirectory();

  const std::filesystem::path& path() const { return temporary_; }  // write files here
  void commit();

 private:
  void check_renamed(int result) const;

  std::filesystem::path final_, temporary_;
  Descriptor descriptor_;  // holds its lock
};

// Holds `folder` until it is destroyed or the process ends; a second process that asks for it is refused. Where
// folders cannot be locked, as over NFS, it holds a file `kLockName` in it, which stays; a file system that has no
// locks at all keeps nobody out, which stderr is told.
inline constexpr char kLockName[] = ".lock";
class DirectoryLock {
 public:
  // Throws Error(usage) when another process holds `folder`, Error(input) when it is no folder.
  explicit DirectoryLock(const std::filesystem::path& folder);

 private:
  Descriptor descriptor_;
};

// Removes what writers of `path` that were killed have left beside it under temporary names. A writer holds a
// lock of its own; where the file system has no locks, nothing is removed. Reads the whole folder: not to be called
// for each of many files in it.
void remove_abandoned(const std::filesystem::path& path);

// Removes what writers that were killed have left in `folder` under temporary names for one of these names
// (or for names that begin so).
void remove_leftovers(const std::filesystem::path& folder, std::initializer_list<std::string_view> names);

std::string read_text(const std::filesystem::path& path, int64_t max_bytes);
void write_text_atomically(const std::filesystem::path& path, std::string_view text);
void sync_path(const std::filesystem::path& path);  // fsync of a file or folder
// Nothing where the file system, as some in user space, does not tell.
std::optional<int64_t> free_bytes(const std::filesystem::path& folder);

}  // namespace sinklora
