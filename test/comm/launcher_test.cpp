// Starting ranks and staying with them: shells play the ranks.
#include "comm/launcher.h"

#include <doctest/doctest.h>
#include <pty.h>
#include <termios.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "base/files.h"
#include "comm/launch_environment.h"
#include "test/comm/processes.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

// A launcher in a process of its own; its output goes to a file.
class Launched {
 public:
  Launched(const std::string& script, int ranks, double grace_s)
      : process_(1, [&](int) {
          const Descriptor output(::open((folder_ / "output").c_str(), O_CREAT | O_WRONLY | O_APPEND, 0600));
          ::dup2(output.get(), STDOUT_FILENO);
          ::dup2(output.get(), STDERR_FILENO);
          const std::string in_folder =
              fmt::format("cd '{}'; echo $$ > pid$SINKLORA_RANK; {}", folder_.path().string(), script);
          return std::to_string(launch_ranks({{"/bin/sh", "-c", in_folder}, ranks, grace_s}));
        }) {}
  std::string code(double seconds) { return process_.end(0, seconds).text; }
  pid_t id() const { return process_.id(0); }
  std::string output() const { return read_text(folder_ / "output", 100000); }
  bool has(const std::string& file) const { return std::filesystem::exists(folder_ / file); }
  pid_t pid_in(const std::string& file) const {
    pid_t id = 0;
    std::ifstream(folder_ / file) >> id;
    return id;
  }
  // A zombie has ended: whoever adopts orphans may be slow to collect it.
  bool lives(const std::string& file) const {
    std::ifstream stat(fmt::format("/proc/{}/stat", pid_in(file)));
    std::string id, name, state;
    return stat >> id >> name >> state && state != "Z";
  }

 private:
  const TemporaryDirectory folder_;
  Processes process_;
};

const std::string program = std::filesystem::read_symlink("/proc/self/exe").string();

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

TEST_CASE("the end of ranks is seen where another thread takes SIGCHLD away, as CUDA's did") {
  Processes launcher(1, [](int) {
    std::thread([] { std::this_thread::sleep_for(std::chrono::seconds(60)); }).detach();
    std::string codes;
    for (int i = 0; i < 20; ++i) codes += std::to_string(launch_ranks({{"/bin/true"}, 2, 5}));
    return codes;
  });
  CHECK(launcher.end(0, 50).text == std::string(20, '0'));
}

TEST_CASE("ranks get their variables; rank 0 speaks plainly, the others with their name") {
  Launched run(
      "echo I am $SINKLORA_RANK of $SINKLORA_WORLD_SIZE, here $SINKLORA_LOCAL_RANK; [ -n \"$SINKLORA_NONCE\" "
      "] || exit 9;"
      "printf 'no end' >&2; if [ $SINKLORA_RANK = 0 ]; then [ -e /proc/self/fd/$SINKLORA_LISTEN_FD ] || exit "
      "8; fi",
      3, 5);
  CHECK(run.code(20) == "0");
  const std::string output = run.output();
  CAPTURE(output);
  CHECK(output.find("[rank 1] I am 1 of 3, here 1\n") != std::string::npos);
  CHECK(output.find("[rank 2] I am 2 of 3, here 2\n") != std::string::npos);
  CHECK(output.find("[rank 2] no end\n") != std::string::npos);
  CHECK(output.find("I am 0 of 3, here 0\n") != std::string::npos);
  CHECK(output.find("[rank 0]") == std::string::npos);
}

TEST_CASE(
    "the first failure is named and gives the exit code; the others are killed after the grace period") {
  // The grandchild of rank 2 must not survive either.
  Launched run(
      "if [ $SINKLORA_RANK = 1 ]; then while [ ! -e grandchild ]; do sleep 0.02; done; sleep 0.1; exit 7; fi;"
      "if [ $SINKLORA_RANK = 2 ]; then sleep 100 & echo $! > grandchild; fi; sleep 100",
      3, 0.5);
  const auto begin = Clock::now();
  CHECK(run.code(20) == "7");
  CHECK(seconds_since(begin) < 15);  // not the 100 s of the sleeping ones
  const std::string output = run.output();
  CAPTURE(output);
  CHECK(output.find("rank 1 ended with exit code 7") != std::string::npos);
  CHECK(output.find("rank 2 still runs 0.5 s after rank 1 failed and is killed") != std::string::npos);
  for (const char* file : {"pid0", "pid1", "pid2", "grandchild"})
    CHECK(eventually(10, [&] { return !run.lives(file); }));
}

TEST_CASE(
    "a rank that a signal ends, one that is stopped, and ranks that end by themselves within the grace "
    "period") {
  Launched killed("if [ $SINKLORA_RANK = 1 ]; then kill -9 $$; fi; sleep 0.3; exit 6", 3, 5);
  CHECK(killed.code(20) == "137");
  CHECK(killed.output().find("rank 1 was ended by signal 9") != std::string::npos);
  CHECK(killed.output().find("is killed") == std::string::npos);

  Launched stopped("if [ $SINKLORA_RANK = 1 ]; then kill -STOP $$; fi; sleep 0.1; exit 6", 2, 0.3);
  CHECK(stopped.code(20) == "6");
  CHECK(stopped.output().find("rank 1 still runs") != std::string::npos);
  CHECK(eventually(10, [&] { return !stopped.lives("pid1"); }));
}

TEST_CASE("ranks speak at a terminal that stops programs in the background when they do (stty tostop)") {
  int terminal = -1;
  const pid_t child = ::forkpty(&terminal, nullptr, nullptr, nullptr);
  REQUIRE(child >= 0);
  if (child == 0) {
    termios settings{};
    ::tcgetattr(0, &settings);
    settings.c_lflag |= TOSTOP;
    ::tcsetattr(0, TCSANOW, &settings);
    ::_exit(launch_ranks({{"/bin/sh", "-c", "echo spoken"}, 2, 5}));
  }
  const Descriptor end(terminal);
  ::fcntl(terminal, F_SETFL, O_NONBLOCK);
  std::string heard;
  const auto listen = [&] {
    char piece[256];
    for (ssize_t got; (got = ::read(terminal, piece, sizeof piece)) > 0;)
      heard.append(piece, static_cast<size_t>(got));
  };
  int status = -1;
  const bool ended = eventually(20, [&] {
    listen();
    return ::waitpid(child, &status, WNOHANG) == child;
  });
  listen();
  if (!ended) ::kill(child, SIGKILL), ::waitpid(child, nullptr, 0);
  CHECK(ended);
  CHECK(status == 0);
  CHECK_MESSAGE(heard.find("spoken") != heard.rfind("spoken"), heard);
}

TEST_CASE(
    "a launcher whose words nobody reads any more stays with its ranks, whose own pipes end them as ever") {
  Processes launcher(1, [](int) {
    ::signal(SIGPIPE, SIG_DFL);
    int ends[2];
    if (::pipe(ends) != 0) return std::string("no pipe");
    ::close(ends[0]);
    ::dup2(ends[1], STDERR_FILENO);
    const std::string script =
        "[ $((0x$(sed -n 's/^SigIgn:.//p' /proc/self/status) & 0x1000)) = 0 ] || exit 9;"
        "[ $SINKLORA_RANK = 0 ] || echo spoken; sleep 0.1";
    return std::to_string(launch_ranks({{"/bin/sh", "-c", script}, 2, 5}));
  });
  const End end = launcher.end(0, 20);
  CHECK(end.signal == 0);
  CHECK(end.text == "0");
}

TEST_CASE("signals reach every rank once; all ranks saved is exit code 75") {
  Launched run(
      "trap 'echo caught >> caught$SINKLORA_RANK; exit 75' TERM; touch ready$SINKLORA_RANK;"
      "while true; do sleep 0.02; done",
      2, 5);
  REQUIRE(eventually(20, [&] { return run.has("ready0") && run.has("ready1"); }));
  ::kill(run.id(), SIGTERM);
  CHECK(run.code(20) == "75");
  CHECK(run.has("caught0"));
  CHECK(run.has("caught1"));
}

TEST_CASE("no rank outlives a launcher that is killed") {
  Launched run("touch ready$SINKLORA_RANK; exec sleep 100", 3, 5);
  REQUIRE(eventually(20, [&] { return run.has("ready0") && run.has("ready1") && run.has("ready2"); }));
  ::kill(run.id(), SIGKILL);
  for (const char* file : {"pid0", "pid1", "pid2"}) CHECK(eventually(10, [&] { return !run.lives(file); }));
}

// Not a test of its own: this program as the ranks of the test below.
TEST_CASE("plays a rank where it is launched as one") {
  const Variables variables = process_variables();
  if (!variables.contains("SINKLORA_TEST_PLAY")) return;
  try {
    const auto communicator =
        make_tcp_communicator(rendezvous_of(detect_launch(variables), "1"), CommunicatorOptions{});
    for (int step = 0; step < 20; ++step) {
      std::vector<float> bucket(50000, static_cast<float>(communicator->rank() + 1));
      communicator->wait(communicator->start_all_reduce_sum(bucket));
      if (bucket[7] != 6) ::_exit(9);
      if (step == 10 && communicator->rank() == 1 && variables.at("SINKLORA_TEST_PLAY") == "die")
        ::raise(SIGKILL);
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    ::_exit(static_cast<int>(error.code));
  }
  ::_exit(0);
}

TEST_CASE("launched ranks find each other, and when one is killed the others say so and end") {
  Launched well(fmt::format("SINKLORA_TEST_PLAY=live exec '{}' -tc='plays a rank*'", program), 3, 5);
  CHECK_MESSAGE(well.code(20) == "0", well.output());
  Launched badly(fmt::format("SINKLORA_TEST_PLAY=die exec '{}' -tc='plays a rank*'", program), 3, 5);
  CHECK(badly.code(20) == "137");
  const std::string output = badly.output();
  CAPTURE(output);
  CHECK(output.find("sinklora: rank 1 was ended by signal 9") != std::string::npos);
  CHECK(output.find("[rank 2] rank 1 (") != std::string::npos);
  CHECK(output.find("is killed") == std::string::npos);
}

TEST_CASE("a program that is not there") {
  Processes process(1, [](int) -> std::string {
    std::fclose(stderr);
    return std::to_string(launch_ranks({{"/no/such/program"}, 2, 1}));
  });
  CHECK(process.end(0, 5).text == "127");
}
