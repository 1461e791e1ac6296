// Preloaded (LD_PRELOAD) into the program by test/train/save_faults_test.cpp: counts the system calls that
// change files below SINKLORA_FAULT_FOLDER, and lets call number SINKLORA_FAULT_AT go wrong as SINKLORA_FAULT
// says:
//   kill    the process is killed before the call
//   eio     the call fails with EIO, once
//   enospc  a write gets half through, other calls fail, and nothing more fits from then on
//   short   a write takes half of its bytes and says so
// Or, always, a file system that lacks something:
//   nfs       folders cannot be locked
//   nolocks   nothing can
//   noblocks  none tells its size
// Faults but kill leave removals alone: a disk that is full, or whose media fail, still forgets. Which call
// it was is left in SINKLORA_FAULT_LOG.
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

std::atomic<long> calls{0};
std::atomic<bool> full{false};

const char* setting(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

template <class Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

bool below(const char* path) {
  const char* folder = setting("SINKLORA_FAULT_FOLDER");
  return *folder && std::strncmp(path, folder, std::strlen(folder)) == 0;
}
bool below(int descriptor) {
  char link[64], path[4096];
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t size = ::readlink(link, path, sizeof path - 1);
  if (size <= 0) return false;
  path[size] = 0;
  return below(path);
}
bool below(int folder, const char* path) {
  return *path == '/' || folder == AT_FDCWD ? below(path) : below(folder);
}

void note(const char* call, long number) {
  char line[256];
  const int size = std::snprintf(line, sizeof line, "call %ld: %s\n", number, call);
  const int log = static_cast<int>(
      ::syscall(SYS_openat, AT_FDCWD, setting("SINKLORA_FAULT_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0600));
  if (log >= 0) {
    ::syscall(SYS_write, log, line, size);
    ::syscall(SYS_close, log);
  }
}

enum class Kind { write, change, removal };
// What a call that is about to happen shall do: 0 what it does; an errno to fail with; -1: half of its bytes.
int verdict(const char* call, Kind kind) {
  const char* fault = setting("SINKLORA_FAULT");
  const bool kill = std::strcmp(fault, "kill") == 0, no_space = std::strcmp(fault, "enospc") == 0;
  const bool short_write = std::strcmp(fault, "short") == 0;
  if (!*fault || (!kill && kind == Kind::removal) || (short_write && kind != Kind::write)) return 0;
  if (full) return ENOSPC;
  const long number = ++calls;
  if (number != std::atol(setting("SINKLORA_FAULT_AT"))) return 0;
  note(call, number);
  if (kill) ::kill(::getpid(), SIGKILL);
  if (no_space) full = true;
  if (short_write || (no_space && kind == Kind::write)) return -1;
  return no_space ? ENOSPC : EIO;
}

bool lacks(const char* what) { return std::strcmp(setting("SINKLORA_FAULT"), what) == 0; }

int failed(int error) {
  errno = error;
  return -1;
}

}  // namespace

#define FAIL_IF(where, call, kind)                          \
  if (below where)                                          \
    if (const int error = verdict(call, kind); error > 0) { \
      return failed(error);                                 \
    }

extern "C" {

ssize_t write(int descriptor, const void* bytes, size_t size) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t)>("write");
  if (descriptor > 2 && below(descriptor)) {
    const int what = verdict("write", Kind::write);
    if (what > 0) return failed(what);
    if (what < 0 && size > 1) size /= 2;
  }
  return real(descriptor, bytes, size);
}
ssize_t writev(int descriptor, const iovec* pieces, int count) {
  static const auto real = next<ssize_t (*)(int, const iovec*, int)>("writev");
  if (descriptor > 2) FAIL_IF((descriptor), "writev", Kind::change)
  return real(descriptor, pieces, count);
}
ssize_t pwrite(int descriptor, const void* bytes, size_t size, off_t offset) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t, off_t)>("pwrite");
  FAIL_IF((descriptor), "pwrite", Kind::change)
  return real(descriptor, bytes, size, offset);
}
int fsync(int descriptor) {
  static const auto real = next<int (*)(int)>("fsync");
  FAIL_IF((descriptor), "fsync", Kind::change)
  return real(descriptor);
}
int fdatasync(int descriptor) {
  static const auto real = next<int (*)(int)>("fdatasync");
  FAIL_IF((descriptor), "fdatasync", Kind::change)
  return real(descriptor);
}
int ftruncate(int descriptor, off_t size) {
  static const auto real = next<int (*)(int, off_t)>("ftruncate");
  FAIL_IF((descriptor), "ftruncate", Kind::change)
  return real(descriptor, size);
}
int rename(const char* from, const char* to) {
  static const auto real = next<int (*)(const char*, const char*)>("rename");
  FAIL_IF((to), "rename", Kind::change)
  return real(from, to);
}
int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags) {
  static const auto real = next<int (*)(int, const char*, int, const char*, unsigned)>("renameat2");
  FAIL_IF((to_folder, to), "renameat2", Kind::change)
  return real(from_folder, from, to_folder, to, flags);
}
int mkdir(const char* path, mode_t mode) {
  static const auto real = next<int (*)(const char*, mode_t)>("mkdir");
  FAIL_IF((path), "mkdir", Kind::change)
  return real(path, mode);
}
int unlink(const char* path) {
  static const auto real = next<int (*)(const char*)>("unlink");
  FAIL_IF((path), "unlink", Kind::removal)
  return real(path);
}
int unlinkat(int folder, const char* path, int flags) {
  static const auto real = next<int (*)(int, const char*, int)>("unlinkat");
  FAIL_IF((folder, path), "unlinkat", Kind::removal)
  return real(folder, path, flags);
}
int rmdir(const char* path) {
  static const auto real = next<int (*)(const char*)>("rmdir");
  FAIL_IF((path), "rmdir", Kind::removal)
  return real(path);
}
int remove(const char* path) {
  static const auto real = next<int (*)(const char*)>("remove");
  FAIL_IF((path), "remove", Kind::removal)
  return real(path);
}

int flock(int descriptor, int operation) {
  static const auto real = next<int (*)(int, int)>("flock");
  struct stat status {};
  if (below(descriptor) && lacks("nolocks")) return failed(ENOLCK);
  if (below(descriptor) && lacks("nfs") && ::fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode))
    return failed(EBADF);
  return real(descriptor, operation);
}
int statvfs(const char* path, struct statvfs* status) {
  static const auto real = next<int (*)(const char*, struct statvfs*)>("statvfs");
  const int result = real(path, status);
  if (result == 0 && lacks("noblocks")) status->f_blocks = status->f_bavail = 0;
  return result;
}

// Only what creates or changes a file counts.
#define OPEN(name)                                                                   \
  int name(const char* path, int flags, ...) {                                       \
    static const auto real = next<int (*)(const char*, int, ...)>(#name);            \
    va_list rest;                                                                    \
    va_start(rest, flags);                                                           \
    const mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                  \
    va_end(rest);                                                                    \
    if (flags & (O_WRONLY | O_RDWR | O_CREAT)) FAIL_IF((path), "open", Kind::change) \
    return real(path, flags, mode);                                                  \
  }
OPEN(open)
OPEN(open64)

}  // extern "C"
