#include "comm/launcher.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "comm/launch_environment.h"
#include "comm/socket.h"

namespace sinklora {
namespace {

// A thread that was there before this one blocked its signals (a CUDA library's) may take SIGCHLD away: look.
constexpr int kLookAnyway = 1000;  // milliseconds
constexpr int kPassedOn[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};

[[noreturn]] void refuse(const char* what) {
  fail(ExitCode::communicator, "cannot start the ranks: {}: {}", what, std::strerror(errno));
}

// Not fmt::print, which throws where nobody reads any more: the ranks come first.
void say(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

struct RankProcess {
  pid_t id = -1;  // -1: has ended
  Descriptor output;
  std::string line;  // not ended yet
};

std::string random_nonce() {
  uint64_t bits[2];
  if (::getrandom(bits, sizeof bits, 0) != sizeof bits) refuse("no random numbers");
  return fmt::format("{:016x}{:016x}", bits[0], bits[1]);
}

class RankProcesses {
 public:
  explicit RankProcesses(const Launch& launch) : launch_(launch), ranks_(launch.ranks) {
    sigset_t waited_for;
    sigemptyset(&waited_for);
    sigaddset(&waited_for, SIGCHLD);
    for (const int number : kPassedOn) sigaddset(&waited_for, number);
    if (::sigprocmask(SIG_BLOCK, &waited_for, &former_mask_) != 0) refuse("sigprocmask");
    signals_ = Descriptor(::signalfd(-1, &waited_for, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!signals_) refuse("signalfd");
    // Where nobody reads its words any more, the ranks go on.
    struct sigaction ignore {};
    ignore.sa_handler = SIG_IGN;
    ::sigaction(SIGPIPE, &ignore, &former_pipe_);
  }
  ~RankProcesses() {
    for (const RankProcess& rank : ranks_)
      if (rank.id > 0) {
        ::kill(-rank.id, SIGKILL);
        ::waitpid(rank.id, nullptr, 0);
      }
    answer_signals();  // a late one must not end this program, which has its exit code
    ::sigaction(SIGPIPE, &former_pipe_, nullptr);
    ::sigprocmask(SIG_SETMASK, &former_mask_, nullptr);
  }

  void start() {
    const Descriptor listener = listen_on(0, true);
    const uint16_t port = port_of(listener);
    const std::string nonce = random_nonce();
    for (int rank = 0; rank < launch_.ranks; ++rank) {
      Variables variables = process_variables();
      variables["SINKLORA_RANK"] = variables["SINKLORA_LOCAL_RANK"] = std::to_string(rank);
      variables["SINKLORA_WORLD_SIZE"] = variables["SINKLORA_LOCAL_WORLD_SIZE"] =
          std::to_string(launch_.ranks);
      variables["SINKLORA_INIT"] = fmt::format("tcp://127.0.0.1:{}", port);
      variables["SINKLORA_NONCE"] = nonce;
      variables.erase("SINKLORA_LISTEN_FD");
      if (rank == 0) variables["SINKLORA_LISTEN_FD"] = std::to_string(listener.get());
      start_one(rank, variables, listener);
    }
  }

  int stay() {
    for (;;) {
      read_outputs();
      answer_signals();
      reap();
      if (running() == 0) break;
      if (first_failure_ >= 0 && Clock::now() >= end_of_grace_) kill_the_rest();
    }
    for (int rank = 0; rank < launch_.ranks; ++rank) drain(rank);
    return first_failure_ >= 0 ? failure_code_ : preempted_ ? static_cast<int>(ExitCode::preempted) : 0;
  }

 private:
  int running() const {
    int count = 0;
    for (const RankProcess& rank : ranks_) count += rank.id > 0;
    return count;
  }

  void start_one(int rank, const Variables& variables, const Descriptor& listener) {
    // Everything that allocates happens before the fork.
    std::vector<std::string> lines;
    for (const auto& [name, value] : variables) lines.push_back(name + "=" + value);
    std::vector<char*> environment, arguments;
    for (std::string& line : lines) environment.push_back(line.data());
    std::vector<std::string> command = launch_.command;
    for (std::string& word : command) arguments.push_back(word.data());
    environment.push_back(nullptr);
    arguments.push_back(nullptr);
    int ends[2] = {-1, -1};
    if (rank > 0 && ::pipe2(ends, O_CLOEXEC) != 0) refuse("pipe");
    Descriptor output(ends[0]), input(ends[1]);
    std::fflush(nullptr);
    const pid_t parent = ::getpid(), child = ::fork();
    if (child < 0) refuse("fork");
    if (child == 0) {
      ::setpgid(0, 0);  // Ctrl-C reaches this program alone, which passes it on, once
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent)
        ::_exit(static_cast<int>(ExitCode::communicator));  // died before the line above
      const int nothing = ::open("/dev/null", O_RDONLY);
      ::dup2(nothing, STDIN_FILENO);
      if (rank == 0) {
        ::fcntl(listener.get(), F_SETFD, 0);
      } else {
        ::dup2(input.get(), STDOUT_FILENO);
        ::dup2(input.get(), STDERR_FILENO);
      }
      ::signal(SIGTTOU, SIG_IGN);  // its group is not the terminal's, which under `stty tostop` would stop it
      ::sigaction(SIGPIPE, &former_pipe_, nullptr);
      ::sigprocmask(SIG_SETMASK, &former_mask_, nullptr);
      ::execve(arguments[0], arguments.data(), environment.data());
      ::_exit(127);
    }
    ::setpgid(child, child);  // also here: whoever comes first
    ranks_[rank].id = child;
    ranks_[rank].output = std::move(output);
    if (rank > 0) ::fcntl(ranks_[rank].output.get(), F_SETFL, O_NONBLOCK);
  }

  void read_outputs() {
    std::vector<pollfd> waiting = {{signals_.get(), POLLIN, 0}};
    for (const RankProcess& rank : ranks_) waiting.push_back({rank.output.get(), POLLIN, 0});
    ::poll(waiting.data(), waiting.size(),
           first_failure_ >= 0 ? std::min(kLookAnyway, milliseconds_left(end_of_grace_)) : kLookAnyway);
    for (int rank = 0; rank < launch_.ranks; ++rank)
      if (waiting[static_cast<size_t>(rank) + 1].revents) drain(rank);
  }

  void drain(int number) {
    RankProcess& rank = ranks_[number];
    char piece[4096];
    while (rank.output) {
      const ssize_t got = ::read(rank.output.get(), piece, sizeof piece);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0 && errno == EAGAIN) return;
      if (got <= 0) {
        rank.output.reset();
        if (!rank.line.empty()) say(fmt::format("[rank {}] {}\n", number, rank.line));
        rank.line.clear();
        return;
      }
      rank.line.append(piece, static_cast<size_t>(got));
      for (size_t end; (end = rank.line.find('\n')) != std::string::npos; rank.line.erase(0, end + 1))
        say(fmt::format("[rank {}] {}", number, rank.line.substr(0, end + 1)));
    }
  }

  void answer_signals() {
    signalfd_siginfo info;
    while (::read(signals_.get(), &info, sizeof info) == sizeof info) {
      if (info.ssi_signo == SIGCHLD) continue;
      for (const RankProcess& rank : ranks_)
        if (rank.id > 0) ::kill(rank.id, static_cast<int>(info.ssi_signo));
    }
  }

  void reap() {
    for (int number = 0; number < launch_.ranks; ++number) {
      RankProcess& rank = ranks_[number];
      siginfo_t info{};
      if (rank.id < 0 ||
          ::waitid(P_PID, static_cast<id_t>(rank.id), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
          info.si_pid == 0)
        continue;
      // What it started goes with it; until it is reaped nobody else can have its group's number.
      ::kill(-rank.id, SIGKILL);
      ::waitpid(std::exchange(rank.id, -1), nullptr, 0);
      drain(number);
      note_end(number, info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status,
               info.si_code == CLD_EXITED
                   ? fmt::format("ended with exit code {}", info.si_status)
                   : fmt::format("was ended by signal {} ({})", info.si_status, ::strsignal(info.si_status)));
    }
  }

  void note_end(int rank, int code, const std::string& how) {
    preempted_ |= code == static_cast<int>(ExitCode::preempted);
    if (code == 0 || code == static_cast<int>(ExitCode::preempted)) return;
    if (killing_) return;
    say(fmt::format("sinklora: rank {} {}{}\n", rank, how,
                    code == 127 ? fmt::format(" (can {} be run?)", launch_.command[0]) : ""));
    // Code 6 says that another rank failed: the one that did may be seen later, but it is the cause.
    const bool first = first_failure_ < 0;
    if (!first && failure_code_ != static_cast<int>(ExitCode::communicator)) return;
    first_failure_ = rank;
    failure_code_ = code;
    if (!first) return;
    end_of_grace_ = after(launch_.grace_s);
    if (running() > 0) say(fmt::format("sinklora: the other ranks have {} s to end\n", launch_.grace_s));
  }

  void kill_the_rest() {
    if (std::exchange(killing_, true)) return;
    for (int rank = 0; rank < launch_.ranks; ++rank)
      if (ranks_[rank].id > 0) {
        say(fmt::format("sinklora: rank {} still runs {} s after rank {} failed and is killed\n", rank,
                        launch_.grace_s, first_failure_));
        ::kill(-ranks_[rank].id, SIGKILL);
      }
    end_of_grace_ = Clock::time_point::max();
  }

  const Launch& launch_;
  std::vector<RankProcess> ranks_;
  sigset_t former_mask_{};
  struct sigaction former_pipe_ {};
  Descriptor signals_;
  int first_failure_ = -1, failure_code_ = 0;
  bool preempted_ = false, killing_ = false;
  Deadline end_of_grace_{};
};

}  // namespace

int launch_ranks(const Launch& launch) {
  if (launch.ranks < 1 || launch.command.empty()) fail_internal("a launch of {} ranks", launch.ranks);
  RankProcesses processes(launch);
  processes.start();
  return processes.stay();
}

}  // namespace sinklora
