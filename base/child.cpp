#include "base/child.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>

#include "base/descriptor.h"
#include "base/error.h"

namespace sinklora {
namespace {

// First byte '1' or '0', then the text.
[[noreturn]] void answer(int descriptor, const std::function<std::string()>& work) {
  std::string message;
  try {
    message = fmt::format("1{}", work());
  } catch (const Error& error) {
    message = fmt::format("0{}", error.what());
  } catch (const std::bad_alloc&) {
    message = "0reading it needs more memory than there is";
  } catch (const std::exception& error) {
    message = fmt::format("0internal error: {}", error.what());
  }
  std::fflush(nullptr);
  for (size_t done = 0; done < message.size();) {
    const ssize_t written = ::write(descriptor, message.data() + done, message.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) ::_exit(1);
    done += static_cast<size_t>(written);
  }
  ::_exit(0);  // no destructors, no atexit handlers: those are the parent's
}

}  // namespace

ChildResult run_in_child(const std::function<std::string()>& work) {
  int ends[2];
  if (::pipe(ends) != 0) fail_internal("cannot create a pipe: {}", std::strerror(errno));
  Descriptor input(ends[0]), output(ends[1]);
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child < 0) fail_internal("cannot start a process: {}", std::strerror(errno));
  if (child == 0) {
    input.reset();
    answer(output.get(), work);
  }
  output.reset();
  std::string message;
  char piece[4096];
  for (;;) {
    const ssize_t got = ::read(input.get(), piece, sizeof piece);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    message.append(piece, static_cast<size_t>(got));
  }
  input.reset();
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFSIGNALED(status))
    return {false, fmt::format("the reader crashed ({}); the file is damaged or hostile",
                               ::strsignal(WTERMSIG(status)))};
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || message.empty())
    return {false,
            fmt::format("the reader ended with status {} and no answer; the file is damaged or hostile",
                        WIFEXITED(status) ? WEXITSTATUS(status) : -1)};
  return {message[0] == '1', message.substr(1)};
}

}  // namespace sinklora
