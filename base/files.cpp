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

// What temporary names of `path` begin with: hidden, beside it.
std::string temporary_prefix(const fs::path& path) {
  return fmt::format(".tmp-{}-", path.filename().string());
}

bool is_same_file(int descriptor, const fs::path& path) {
  struct stat opened {
  }, named{};
  return ::fstat(descriptor, &opened) == 0 && ::lstat(path.c_str(), &named) == 0 &&
         opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}

// A descriptor of what `create` makes and opens under a new temporary name of `path`, which it holds locked:
// nobody else's sweep may take it, whatever host or container its process is in. Where there are no locks it
// is not held, and nobody can sweep. Empty: it cannot be created, as errno says.
template <class Create>
Descriptor create_locked(const fs::path& path, fs::path& temporary, Create create) {
  for (int64_t number = 0;; ++number) {
    temporary = path.parent_path() / fmt::format("{}{}.{}", temporary_prefix(path), ::getpid(), number);
    Descriptor descriptor(create(temporary));
    if (!descriptor && errno == EEXIST) continue;
    if (!descriptor) return descriptor;
    const bool taken = ::flock(descriptor.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (!taken && ::access(temporary.c_str(), F_OK) == 0) return descriptor;
    // A sweep came in between: the next name.
  }
}

}  // namespace

// O_NONBLOCK: without it, opening a named pipe would wait for ever; regular files do not mind.
ReadFile::ReadFile(const fs::path& path)
    : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (!descriptor_) fail_input("{}: cannot open: {}", path.string(), reason());
  struct stat status {};
  if (::fstat(descriptor_.get(), &status) != 0 || !S_ISREG(status.st_mode))
    fail_input("{}: not a regular file", path.string());
  size_ = status.st_size;
}

int64_t ReadFile::read_some(int64_t offset, std::span<std::byte> out) const {
  int64_t done = 0;
  while (done < static_cast<int64_t>(out.size())) {
    const ssize_t got =
        ::pread(descriptor_.get(), out.data() + done, out.size() - static_cast<size_t>(done), offset + done);
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

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)) {
  descriptor_ = create_locked(path_, temporary_, [](const fs::path& name) {
    return ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  });
  if (!descriptor_) fail_input("{}: cannot create: {}", path_.string(), reason());
}
AtomicFile::~AtomicFile() {
  if (!descriptor_) return;
  descriptor_.reset();
  ::unlink(temporary_.c_str());
}
void AtomicFile::write(std::span<const std::byte> bytes) { write_fully(descriptor_.get(), bytes, path_); }
void AtomicFile::commit() {
  const Descriptor lock(::fcntl(descriptor_.get(), F_DUPFD_CLOEXEC, 0));  // until it has its name
  const bool flushed = ::fsync(descriptor_.get()) == 0;
  const bool closed = ::close(descriptor_.release()) == 0;
  const bool renamed = flushed && closed && ::rename(temporary_.c_str(), path_.c_str()) == 0;
  const std::string why = reason();
  if (!renamed) ::unlink(temporary_.c_str());
  if (!renamed) fail_input("{}: cannot save: {}", path_.string(), why);
  sync_path(path_.parent_path());
}

AppendFile::AppendFile(fs::path path)
    : path_(std::move(path)),
      descriptor_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) {
  if (!descriptor_) fail_input("{}: cannot open for appending: {}", path_.string(), reason());
}
void AppendFile::write(std::string_view text) {
  write_fully(descriptor_.get(), std::as_bytes(std::span(text)), path_);
}
void AppendFile::sync() {
  if (::fdatasync(descriptor_.get()) != 0 && errno != EINVAL)  // as sync_path() has it
    fail_input("{}: cannot flush to disk: {}", path_.string(), reason());
}

AtomicDirectory::AtomicDirectory(fs::path path, Existing existing) : final_(std::move(path)) {
  if (!final_.has_filename()) final_ = final_.parent_path();
  std::error_code error;
  if (existing == Existing::refuse && fs::exists(final_, error))
    fail_usage("{}: exists already; choose another output directory", final_.string());
  if (final_.has_parent_path()) fs::create_directories(final_.parent_path(), error);
  remove_abandoned(final_);
  descriptor_ = create_locked(final_, temporary_, [](const fs::path& name) {
    if (::mkdir(name.c_str(), 0777) != 0) return -1;
    const int descriptor = ::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor >= 0) return descriptor;
    const int why = errno == ENOENT ? EEXIST : errno;  // gone: a sweep took it, the next name may stay
    ::rmdir(name.c_str());
    errno = why;
    return -1;
  });
  if (!descriptor_) fail_input("{}: cannot create: {}", final_.string(), reason());
}
AtomicDirectory::~AtomicDirectory() {
  std::error_code ignored;  // after an exchange this name has what was there before
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
}
void AtomicDirectory::check_renamed(int result) const {
  if (result != 0) fail_input("{}: cannot save: {}", final_.string(), reason());
}
void AtomicDirectory::commit() {
  for (const auto& entry : fs::recursive_directory_iterator(temporary_)) sync_path(entry.path());
  sync_path(temporary_);
  if (!fs::exists(final_)) {
    check_renamed(::rename(temporary_.c_str(), final_.c_str()));
    temporary_.clear();  // the name is free for others
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
  if (!descriptor_) fail_input("{}: cannot use it as a directory: {}", folder.string(), reason());
  if (::flock(descriptor_.get(), LOCK_EX | LOCK_NB) == 0) return;
  if (errno != EWOULDBLOCK) {  // NFS locks what is open for writing, which no folder is
    const fs::path file = folder / kLockName;
    descriptor_ = Descriptor(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    if (!descriptor_) fail_input("{}: cannot create: {}", file.string(), reason());
    if (::flock(descriptor_.get(), LOCK_EX | LOCK_NB) == 0) return;
  }
  if (errno == EWOULDBLOCK)
    fail_usage("{}: another run is writing there; wait for its end, or choose another output directory",
               folder.string());
  fmt::print(stderr, "warning: {}: its file system has no locks ({}): start no second run there meanwhile\n",
             folder.string(), reason());
}

void remove_abandoned(const fs::path& path) {
  const std::string prefix = temporary_prefix(path);
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  std::error_code error;
  std::vector<fs::path> found;
  for (auto entry = fs::directory_iterator(folder, error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    // The rest is a process and a number. Not so with "-" in it: then it is of a file whose name begins alike.
    if (name.size() > prefix.size() && name.starts_with(prefix) &&
        name.find_first_not_of("0123456789.", prefix.size()) == std::string::npos)
      found.push_back(entry->path());
  }
  for (const fs::path& leftover : found) {
    const int flags = O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    Descriptor descriptor(::open(leftover.c_str(), O_RDWR | flags));  // over NFS only writers can lock
    if (!descriptor && errno == EISDIR) descriptor = Descriptor(::open(leftover.c_str(), O_RDONLY | flags));
    if (descriptor && ::flock(descriptor.get(), LOCK_EX | LOCK_NB) == 0 &&
        is_same_file(descriptor.get(), leftover))
      fs::remove_all(leftover, error);
  }
}

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
  const Descriptor descriptor(::open(target.c_str(), O_RDONLY | O_CLOEXEC));
  if (!descriptor) fail_input("{}: cannot open to flush it: {}", target.string(), reason());
  // Some file systems cannot fsync a folder and say EINVAL; nothing better exists there.
  const int error = ::fsync(descriptor.get()) == 0 || errno == EINVAL ? 0 : errno;
  if (error != 0) fail_input("{}: cannot flush to disk: {}", target.string(), std::strerror(error));
}

std::optional<int64_t> free_bytes(const fs::path& folder) {
  struct statvfs status {};
  if (::statvfs(folder.c_str(), &status) != 0)
    fail_input("{}: cannot ask for free space: {}", folder.string(), reason());
  if (status.f_blocks == 0) return std::nullopt;
  return static_cast<int64_t>(status.f_bavail) * static_cast<int64_t>(status.f_frsize);
}

}  // namespace sinklora
