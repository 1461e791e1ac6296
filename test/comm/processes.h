// Ranks as processes: forked, watched, ended.
#pragma once

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "comm/socket.h"
#include "comm/tcp_communicator.h"

namespace sinklora::test {

struct End {
  bool ok = false;   // returned, and did not throw
  std::string text;  // what it returned or threw; empty where a signal ended it
  int signal = 0;
};

class Processes {
 public:
  // Runs body(rank) in a process each.
  Processes(int count, const std::function<std::string(int)>& body) : ids_(count), pipes_(count) {
    std::fflush(nullptr);
    for (int rank = 0; rank < count; ++rank) {
      int ends[2];
      if (::pipe(ends) != 0) throw std::runtime_error("cannot create a pipe");
      pipes_[rank] = Descriptor(ends[0]);
      const Descriptor output(ends[1]);
      ids_[rank] = ::fork();
      if (ids_[rank] < 0) throw std::runtime_error("cannot fork");
      if (ids_[rank] > 0) continue;
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::alarm(60);
      std::string text;
      try {
        text = fmt::format("1{}", body(rank));
      } catch (const std::exception& error) {
        text = fmt::format("0{}", error.what());
      }
      [[maybe_unused]] const ssize_t written = ::write(output.get(), text.data(), text.size());
      ::_exit(0);
    }
  }
  ~Processes() {
    for (const pid_t id : ids_)
      if (id > 0) {
        ::kill(id, SIGKILL);
        ::waitpid(id, nullptr, 0);
      }
  }
  pid_t id(int rank) const { return ids_[rank]; }

  // Waits for a rank's end; one that takes longer than `seconds` throws.
  End end(int rank, double seconds) {
    End end;
    std::string text;
    char piece[4096];
    const Deadline deadline = after(seconds);
    for (;;) {
      pollfd one{pipes_[rank].get(), POLLIN, 0};
      if (::poll(&one, 1, milliseconds_left(deadline)) == 0)
        throw std::runtime_error(fmt::format("rank {} still runs", rank));
      const ssize_t got = ::read(pipes_[rank].get(), piece, sizeof piece);
      if (got <= 0) break;
      text.append(piece, static_cast<size_t>(got));
    }
    int status = 0;
    ::waitpid(std::exchange(ids_[rank], -1), &status, 0);
    if (WIFSIGNALED(status)) end.signal = WTERMSIG(status);
    if (!text.empty()) end = {text[0] == '1', text.substr(1), end.signal};
    return end;
  }

 private:
  std::vector<pid_t> ids_;
  std::vector<Descriptor> pipes_;
};

// A place to meet for processes that are forked while it lives.
class Place {
 public:
  Place() : listener_(listen_on(0, true)) {}
  Rendezvous of(int rank, int world_size) const {
    Rendezvous rendezvous;
    rendezvous.rank = rank;
    rendezvous.world_size = world_size;
    rendezvous.init = fmt::format("tcp://127.0.0.1:{}", port_of(listener_));
    rendezvous.nonce = "test";
    rendezvous.version = "1.0";
    rendezvous.timeout_s = 10;
    if (rank == 0) rendezvous.listen_descriptor = ::dup(listener_.get());
    return rendezvous;
  }
  void close() { listener_.reset(); }

 private:
  Descriptor listener_;
};

inline std::ptrdiff_t open_descriptors() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
}

// A wait that is over as soon as it can be.
inline bool eventually(double seconds, const std::function<bool()>& holds) {
  for (const Deadline deadline = after(seconds); Clock::now() < deadline; ::usleep(5000))
    if (holds()) return true;
  return holds();
}

}  // namespace sinklora::test
