#include "base/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "base/error.h"

namespace sinklora {
namespace fs = std::filesystem;
namespace {

std::string reason() { return std::strerror(errno); }

void write_fully(int descriptor, std::span<const std::byte> bytes, const fs::path& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0)
      fail_input("{}: cannot write: {}", path.string(), written < 0 ? reason() : "no progress");
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

// The temporary name of `path`: hidden, beside it, distinct per process.
fs::path temporary_beside(const fs::path& path) {
  return path.parent_path() / fmt::format(".tmp-{}-{}", path.filename().string(), ::getpid());
}

}  // namespace

// O_NONBLOCK: without it, opening a named pipe would wait for ever; regular files do not mind.
ReadFile::ReadFile(const fs::path& path)
    : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (descriptor_ < 0) fail_input("{}: cannot open: {}", path.string(), reason());
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    fail_input("{}: not a regular file", path.string());
  }
  size_ = status.st_size;
}
ReadFile::~ReadFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}
ReadFile::ReadFile(ReadFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), size_(other.size_) {}

int64_t ReadFile::read_some(int64_t offset, std::span<std::byte> out) const {
  int64_t done = 0;
  while (done < static_cast<int64_t>(out.size())) {
    const ssize_t got =
        ::pread(descriptor_, out.data() + done, out.size() - static_cast<size_t>(done), offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_input("{}: cannot read at byte {}: {}", path_.string(), offset + done, reason());
    if (got == 0) break;
    done += got;
  }
  return done;
}

void ReadFile::read(int64_t offset, std::span<std::byte> out) const {
  const int64_t got = read_some(offset, out);
  if (got != static_cast<int64_t>(out.size()))
    fail_input("{}: ends at byte {}, wanted {} bytes from byte {}", path_.string(), offset + got, out.size(),
               offset);
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)), temporary_(temporary_beside(path_)) {
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail_input("{}: cannot create: {}", path_.string(), reason());
}
AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}
void AtomicFile::write(std::span<const std::byte> bytes) { write_fully(descriptor_, bytes, path_); }
void AtomicFile::commit() {
  const bool flushed = ::fsync(descriptor_) == 0;
  const bool closed = ::close(std::exchange(descriptor_, -1)) == 0;
  if (!flushed || !closed || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const std::string why = reason();
    ::unlink(temporary_.c_str());
    fail_input("{}: cannot save: {}", path_.string(), why);
  }
  sync_path(path_.parent_path());
}

AppendFile::AppendFile(fs::path path)
    : path_(std::move(path)),
      descriptor_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) {
  if (descriptor_ < 0) fail_input("{}: cannot open for appending: {}", path_.string(), reason());
}
AppendFile::~AppendFile() { ::close(descriptor_); }
void AppendFile::write(std::string_view text) {
  write_fully(descriptor_, std::as_bytes(std::span(text)), path_);
}

AtomicDirectory::AtomicDirectory(fs::path path, Existing existing) : final_(std::move(path)) {
  if (!final_.has_filename()) final_ = final_.parent_path();
  temporary_ = temporary_beside(final_);
  std::error_code error;
  if (existing == Existing::refuse && fs::exists(final_, error))
    fail_usage("{}: exists already; choose another output directory", final_.string());
  if (final_.has_parent_path()) fs::create_directories(final_.parent_path(), error);
  fs::remove_all(temporary_, error);
  error.clear();
  if (!fs::create_directory(temporary_, error))
    fail_input("{}: cannot create: {}", final_.string(), error.message());
}
AtomicDirectory::~AtomicDirectory() {
  std::error_code ignored;  // after an exchange this name has what was there before
  fs::remove_all(temporary_, ignored);
}
void AtomicDirectory::check_renamed(int result) const {
  if (result != 0) fail_input("{}: cannot save: {}", final_.string(), reason());
}
void AtomicDirectory::commit() {
  for (const auto& entry : fs::recursive_directory_iterator(temporary_)) sync_path(entry.path());
  sync_path(temporary_);
  if (!fs::exists(final_)) {
    check_renamed(::rename(temporary_.c_str(), final_.c_str()));
  } else if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, final_.c_str(), RENAME_EXCHANGE) != 0) {
    if (errno != EINVAL && errno != ENOSYS) check_renamed(-1);
    // A file system that cannot exchange names; a kill in between leaves neither.
    const fs::path trash = final_.parent_path() / (".trash-" + final_.filename().string());
    check_renamed(::rename(final_.c_str(), trash.c_str()));
    check_renamed(::rename(temporary_.c_str(), final_.c_str()));
    std::error_code ignored;
    fs::remove_all(trash, ignored);
  }
  sync_path(final_.parent_path());
}

DirectoryLock::DirectoryLock(const fs::path& folder)
    : descriptor_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  if (descriptor_ < 0) fail_input("{}: cannot use it as a directory: {}", folder.string(), reason());
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
  ::close(descriptor_);
  fail_usage("{}: another run is writing there; wait for its end, or choose another output directory",
             folder.string());
}
DirectoryLock::~DirectoryLock() { ::close(descriptor_); }

void remove_leftovers(const fs::path& folder, std::initializer_list<std::string_view> names) {
  std::error_code error;
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    for (const std::string_view wanted : names)
      if (name.starts_with(fmt::format(".tmp-{}", wanted)) ||
          name.starts_with(fmt::format(".trash-{}", wanted)))
        found.push_back(entry.path());
  }
  for (const fs::path& path : found)
    if (fs::remove_all(path, error); error)
      fail_input("{}: cannot remove: {}", path.string(), error.message());
}

std::string read_text(const fs::path& path, int64_t max_bytes) {
  const ReadFile file(path);
  if (file.size() > max_bytes)
    fail_input("{}: {} bytes; at most {} are expected in such a file", path.string(), file.size(), max_bytes);
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

void write_text_atomically(const fs::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

void sync_path(const fs::path& path) {
  const fs::path target = path.empty() ? fs::path(".") : path;
  const int descriptor = ::open(target.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail_input("{}: cannot open to flush it: {}", target.string(), reason());
  // Some file systems cannot fsync a folder and say EINVAL; nothing better exists there.
  const int error = ::fsync(descriptor) == 0 || errno == EINVAL ? 0 : errno;
  ::close(descriptor);
  if (error != 0) fail_input("{}: cannot flush to disk: {}", target.string(), std::strerror(error));
}

int64_t free_bytes(const fs::path& folder) {
  struct statvfs status {};
  if (::statvfs(folder.c_str(), &status) != 0)
    fail_input("{}: cannot ask for free space: {}", folder.string(), reason());
  return static_cast<int64_t>(status.f_bavail) * static_cast<int64_t>(status.f_frsize);
}

}  // namespace sinklora
