// Ranks that die or stop: the others end inside the time-out with the rank's name and leave nothing behind.
#include <doctest/doctest.h>

#include <thread>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "comm/agreement.h"
#include "comm/flight_record.h"
#include "comm/watchdog.h"
#include "test/comm/processes.h"
#include "test/comm/thread_communicator.h"
#include "test/model/files.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

CommunicatorOptions options_with(double timeout_s, double silence_s) {
  CommunicatorOptions options;
  options.timeout_s = timeout_s;
  options.silence_s = silence_s;
  return options;
}

// Sums without end. A file in `signs` shows that the rank has got that far; flight records go there, too.
std::string sum_for_ever(const Place& place, int rank, int world_size, const CommunicatorOptions& options,
                         const std::filesystem::path& signs) {
  const auto communicator = make_tcp_communicator(place.of(rank, world_size), options);
  communicator->leave_record_in(signs);
  std::vector<float> bucket(300000, 1);
  for (int step = 0;; ++step) {
    communicator->wait(communicator->start_all_reduce_sum(bucket));
    if (step == 10) write_text_atomically(signs / fmt::format("rank{}", rank), "under way");
  }
}

}  // namespace

TEST_CASE("a rank that is killed or stopped in mid-call is named by all others inside the time-out") {
  const int world_size = 4;
  for (const int how : {SIGKILL, SIGSTOP})
    for (const int victim : {0, 2}) {
      CAPTURE(how);
      CAPTURE(victim);
      const TemporaryDirectory folder(memory_folder());
      const double silence_s = 3;
      Place place;
      Processes ranks(world_size, [&](int rank) {
        return sum_for_ever(place, rank, world_size, options_with(15, silence_s), folder.path());
      });
      for (int rank = 0; rank < world_size; ++rank)
        REQUIRE(
            eventually(20, [&] { return std::filesystem::exists(folder / fmt::format("rank{}", rank)); }));
      const auto begin = Clock::now();
      REQUIRE(::kill(ranks.id(victim), how) == 0);
      const std::string name = fmt::format("rank {} (", victim);
      const std::string verdict = how == SIGKILL ? "died" : "silent for 3 s";
      for (int rank = 0; rank < world_size; ++rank) {
        if (rank == victim) continue;
        const End end = ranks.end(rank, 14);
        CHECK(!end.ok);
        CHECK_MESSAGE(end.text.starts_with(name), end.text);
        CHECK_MESSAGE(end.text.find(verdict) != std::string::npos, end.text);
        const Json flight = read_json(folder / fmt::format("flight.rank{}.json", rank));
        CHECK(flight.at("reason") == end.text);
        CHECK(flight.at("calls").size() >= 10);
        CHECK(flight.at("calls").back().at("op") == "all_reduce_sum");
        CHECK(flight.at("calls").back().at("bytes") == 1200000);
        CHECK(flight.at("calls").front().at("finished_s").is_number());
      }
      CHECK(Clock::now() - begin < std::chrono::seconds(12));
    }
}

TEST_CASE("two ranks that die at once end the others as well") {
  const TemporaryDirectory folder(memory_folder());
  Place place;
  Processes ranks(5,
                  [&](int rank) { return sum_for_ever(place, rank, 5, options_with(5, 5), folder.path()); });
  for (int rank = 0; rank < 5; ++rank)
    REQUIRE(eventually(20, [&] { return std::filesystem::exists(folder / fmt::format("rank{}", rank)); }));
  ::kill(ranks.id(0), SIGKILL);
  ::kill(ranks.id(3), SIGKILL);
  for (const int rank : {1, 2, 4}) CHECK_MESSAGE(!ranks.end(rank, 20).ok, rank);
}

TEST_CASE("a process that a verdict does not end is ended after the grace period with code 6") {
  Place place;
  CommunicatorOptions options = options_with(5, 5);
  options.grace_s = 0.5;
  Processes ranks(2, [&](int rank) -> std::string {
    std::fclose(stderr);
    const auto communicator = make_tcp_communicator(place.of(rank, 2), options);
    try {
      communicator->barrier();  // rank 0 may learn of the end of rank 1 before it has left it
    } catch (const Error&) {
    }
    if (rank == 1) ::_exit(1);  // dies without a word
    for (;;) ::sleep(1);        // computes and computes
  });
  const auto begin = Clock::now();
  const pid_t id = ranks.id(0);
  int status = 0;
  REQUIRE(eventually(5, [&] {
    siginfo_t info{};
    ::waitid(P_PID, static_cast<id_t>(id), &info, WEXITED | WNOHANG | WNOWAIT);
    status = info.si_status;
    return info.si_pid == id;
  }));
  CHECK(status == 6);
  CHECK(Clock::now() - begin < std::chrono::seconds(8));
}

TEST_CASE("the watchdog tells a rank that makes no calls that another has gone") {
  Place place;
  Processes ranks(2, [&](int rank) -> std::string {
    const auto communicator = make_tcp_communicator(place.of(rank, 2), options_with(5, 5));
    communicator->barrier();
    if (rank == 1) ::_exit(1);
    for (;; ::usleep(1000)) communicator->watchdog().check();
  });
  const End end = ranks.end(0, 20);
  CHECK_MESSAGE(end.text.find("rank 1 (") == 0, end.text);
  CHECK_MESSAGE(end.text.find("died") != std::string::npos, end.text);
}

TEST_CASE("communicators leave no descriptor and no thread behind, whether the run ended well or badly") {
  Place place;
  Processes ranks(3, [&](int rank) -> std::string {
    const auto threads = [] {
      return std::distance(std::filesystem::directory_iterator("/proc/self/task"), {});
    };
    const Rendezvous rendezvous = place.of(rank, 3);
    place.close();
    const auto threads_before = threads(), before = open_descriptors() - (rendezvous.listen_descriptor >= 0);
    {
      const auto communicator = make_tcp_communicator(rendezvous, options_with(5, 5));
      try {
        communicator->barrier();  // the others may learn of the end of rank 2 before they have left it
        if (rank == 2) communicator->abort("on purpose");
        for (;;) communicator->barrier();
      } catch (const Error&) {
      }
    }
    eventually(2, [&] { return threads() == threads_before; });  // /proc may still show a thread that ended
    return fmt::format("{} {}", open_descriptors() - before, threads() - threads_before);
  });
  for (int rank = 0; rank < 3; ++rank) CHECK(ranks.end(rank, 10).text == "0 0");
}

TEST_CASE("a rank that aborts leaves records on all, unless it keeps none itself") {
  for (const bool keeps : {true, false}) {
    CAPTURE(keeps);
    const TemporaryDirectory folder(memory_folder());
    Place place;
    Processes ranks(3, [&](int rank) -> std::string {
      const auto communicator = make_tcp_communicator(place.of(rank, 3), options_with(5, 5));
      communicator->leave_record_in(folder.path());
      communicator->barrier();
      if (rank == 2 && !keeps) communicator->leave_record_in({});
      if (rank == 2) communicator->abort("on purpose");
      for (;;) communicator->barrier();
    });
    for (int rank = 0; rank < 3; ++rank) {
      check_contains(ranks.end(rank, 10).text, "aborted: on purpose");
      CHECK(std::filesystem::exists(folder / fmt::format("flight.rank{}.json", rank)) == keeps);
    }
  }
}

TEST_CASE("the flight record keeps the last calls, and says which were not finished") {
  const TemporaryDirectory folder;
  FlightRecord record(3, 8, 4);
  CHECK(record.last_call() == "no call yet");
  for (int call = 0; call < 6; ++call) {
    CHECK(record.start(Lane::host, "barrier", call) == static_cast<uint64_t>(call) + 1);
    if (call < 4) record.finish(Lane::host);
  }
  record.start(Lane::device, "all_reduce_sum", 1 << 20);
  CHECK(record.counts(Lane::host).started == 6);
  CHECK(record.counts(Lane::host).finished == 4);
  CHECK(record.last_call() == "call 1, all_reduce_sum of 1.00 MiB, not finished");
  record.write(folder.path(), "why \xff");
  const Json json = read_json(folder / "flight.rank3.json");
  CHECK(json.at("calls").size() == 4);
  CHECK(json.at("calls")[0].at("sequence") == 4);
  CHECK(json.at("calls")[0].at("finished_s").is_number());
  CHECK(json.at("calls")[1].at("finished_s").is_null());
  CHECK(json.at("calls")[3].at("lane") == "device");
}

TEST_CASE("ranks that disagree learn in which field, and which ranks have which value") {
  const int world_size = 4;
  const auto compare = [&](const std::function<std::vector<Field>(int)>& fields) {
    auto communicators = make_thread_communicators(world_size, options_with(5, 5));
    std::vector<std::string> errors(world_size);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < world_size; ++rank)
      threads.emplace_back([&, rank] {
        try {
          agree(*communicators[rank], fields(rank), "before step 1");
          communicators[rank]->barrier();  // still in step
        } catch (const Error& error) {
          CHECK(error.code == ExitCode::communicator);
          errors[rank] = error.what();
        }
      });
    for (std::thread& thread : threads) thread.join();
    for (const std::string& error : errors) CHECK(error == errors[0]);
    return errors[0];
  };
  const auto same = [](int) { return std::vector<Field>{{"lr", "2e-5"}, {"data", std::string(5000, 'x')}}; };
  CHECK(compare(same) == "");
  CHECK(compare([](int) { return std::vector<Field>{}; }) == "");
  CHECK(
      compare([&](int rank) {
        auto fields = same(rank);
        if (rank == 2) fields[0].value = "3e-5";
        return fields;
      }) ==
      "before step 1 the ranks disagree: lr is '2e-5' on ranks 0, 1, 3 and '3e-5' on rank 2; give all ranks "
      "the same");
  const std::string two = compare([&](int rank) {
    auto fields = same(rank);
    fields[0].value = std::to_string(rank);
    if (rank == 3) fields[1].value.back() = 'y';  // where the shown part is equal the hash still differs
    return fields;
  });
  CHECK_MESSAGE(two.find("lr is '0' on rank 0 and '1' on rank 1 and") != std::string::npos, two);
  CHECK_MESSAGE(two.find("data is 'xxx") != std::string::npos, two);
  const std::string lists = compare([&](int rank) {
    auto fields = same(rank);
    if (rank == 1) fields.push_back({"seed", "1"});
    return fields;
  });
  CHECK_MESSAGE(lists.find("'2 fields' on ranks 0, 2, 3 and '3 fields' on rank 1") != std::string::npos,
                lists);
}
