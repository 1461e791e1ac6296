// What every implementation promises, on threads and on processes: the same sums as a loop in the order of
// ranks, bit for bit, whatever the timing.
#include "comm/communicator.h"

#include <doctest/doctest.h>

#include <thread>

#include "base/error.h"
#include "test/comm/exercise.h"
#include "test/comm/processes.h"
#include "test/comm/thread_communicator.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

// Runs body(communicator) on a thread per rank; returns what each threw, or "".
std::vector<std::string> on_threads(int world_size, const CommunicatorOptions& options,
                                    const std::function<void(Communicator&)>& body) {
  auto communicators = make_thread_communicators(world_size, options);
  std::vector<std::string> errors(static_cast<size_t>(world_size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank)
    threads.emplace_back([&, rank] {
      try {
        const std::unique_ptr<Communicator> mine = std::move(communicators[rank]);
        body(*mine);
      } catch (const std::exception& error) {
        errors[rank] = error.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return errors;
}

CommunicatorOptions quick(double timeout_s) {
  CommunicatorOptions options;
  options.timeout_s = timeout_s;
  options.silence_s = timeout_s;
  return options;
}

std::string on_a_process(const Place& place, int rank, int world_size, const CommunicatorOptions& options,
                         const std::function<std::string(Communicator&)>& body) {
  const auto communicator = make_tcp_communicator(place.of(rank, world_size), options);
  return body(*communicator);
}

}  // namespace

TEST_CASE("threads: sums, broadcasts and gathers are exact, and equal whatever the timing") {
  for (int world_size = 1; world_size <= 8; ++world_size) {
    CAPTURE(world_size);
    std::vector<std::string> results(static_cast<size_t>(world_size));
    const auto errors = on_threads(world_size, quick(20), [&](Communicator& communicator) {
      results[communicator.rank()] = exercise(communicator, static_cast<uint64_t>(world_size), 3);
    });
    for (const std::string& error : errors) REQUIRE(error == "");
    for (const std::string& result : results) CHECK(result == results[0]);
  }
}

TEST_CASE("processes: the same promises over TCP, and the same bits as threads") {
  for (const int world_size : {1, 2, 3, 5, 8}) {
    CAPTURE(world_size);
    std::string on_thread;
    on_threads(world_size, quick(20), [&](Communicator& communicator) {
      const std::string result = exercise(communicator, 77, 3);
      if (communicator.rank() == 0) on_thread = result;
    });
    Place place;
    Processes ranks(world_size, [&](int rank) {
      return on_a_process(place, rank, world_size, quick(20),
                          [](Communicator& c) { return exercise(c, 77, 3); });
    });
    for (int rank = 0; rank < world_size; ++rank) {
      const End end = ranks.end(rank, 30);
      CHECK_MESSAGE(end.ok, end.text);
      CHECK(end.text == on_thread);
    }
  }
}

TEST_CASE("one process is its own sum") {
  const auto communicator = make_single_communicator();
  CHECK(exercise(*communicator, 5, 3) != "");
  communicator->abort("enough");
  CHECK_THROWS_WITH_AS(communicator->barrier(), doctest::Contains("enough"), Error);
}

TEST_CASE("threads: a rank that is late, leaves, throws, aborts or goes another way is named") {
  const auto others = [](const std::vector<std::string>& errors, int culprit, const std::string& text) {
    for (int rank = 0; rank < static_cast<int>(errors.size()); ++rank)
      if (rank != culprit) CHECK_MESSAGE(errors[rank].find(text) != std::string::npos, errors[rank]);
  };
  const auto rank_2 = [](Communicator& communicator, const std::function<void()>& does) {
    communicator.barrier();
    if (communicator.rank() == 2) return does();
    std::vector<float> bucket(1000, 1);
    communicator.wait(communicator.start_all_reduce_sum(bucket));
  };
  others(on_threads(4, quick(1),
                    [&](Communicator& c) {
                      rank_2(c, [] { std::this_thread::sleep_for(std::chrono::seconds(3)); });
                    }),
         2, "rank 2 did not come to call 2, all_reduce_sum");
  others(on_threads(4, quick(20), [&](Communicator& c) { rank_2(c, [] {}); }), 2,
         "rank 2 left before call 2");
  others(on_threads(4, quick(20),
                    [&](Communicator& c) { rank_2(c, [] { throw std::runtime_error("disk full"); }); }),
         2, "rank 2 aborted: left by an exception");
  others(on_threads(4, quick(20), [&](Communicator& c) { rank_2(c, [&] { c.abort("disk full"); }); }), 2,
         "rank 2 aborted: disk full");
  others(on_threads(4, quick(20), [&](Communicator& c) { rank_2(c, [&] { c.barrier(); }); }), -1,
         "rank 2 barrier of 0 bytes");
}

TEST_CASE("processes: a rank that is late, leaves, throws, aborts or goes another way is named") {
  struct Case {
    const char* name;
    double timeout_s;
    std::function<void(Communicator&)> rank_2;
    const char* message;
  };
  const std::vector<Case> cases = {
      {"late", 2, [](Communicator&) { ::sleep(20); }, "did not come to call 2"},
      {"leaves", 20, [](Communicator&) {}, "left before call 2"},
      {"throws", 20, [](Communicator&) { throw std::runtime_error("x"); }, "aborted: left by an exception"},
      {"aborts", 20, [](Communicator& c) { c.abort("disk full"); }, "aborted: disk full"},
      {"other way", 20, [](Communicator& c) { c.barrier(); }, "went different ways"},
  };
  for (const Case& one : cases) {
    CAPTURE(one.name);
    Place place;
    const int world_size = 4;
    CommunicatorOptions options = quick(20);
    options.timeout_s = one.timeout_s;
    const auto begin = Clock::now();
    Processes ranks(world_size, [&](int rank) -> std::string {
      // Not a communicator's own scope: a rank that throws unwinds through it.
      return on_a_process(place, rank, world_size, options, [&](Communicator& communicator) -> std::string {
        communicator.barrier();
        if (rank == 2) {
          one.rank_2(communicator);
          return "";
        }
        std::vector<float> bucket(100000, 1);
        communicator.wait(communicator.start_all_reduce_sum(bucket));
        return "";
      });
    });
    for (const int rank : {0, 1, 3}) {
      const End end = ranks.end(rank, 19);
      CHECK(!end.ok);
      CHECK_MESSAGE(end.text.find("rank 2") != std::string::npos, end.text);
      CHECK_MESSAGE(end.text.find(one.message) != std::string::npos, end.text);
    }
    CHECK(Clock::now() - begin < std::chrono::duration<double>(15));
  }
}
