// Processes that find each other, and those that do not: an error inside the time-out that says who is
// missing.
#include "comm/rendezvous.h"

#include <doctest/doctest.h>

#include <thread>

#include "base/error.h"
#include "base/files.h"
#include "test/comm/processes.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

// What each rank's meet() throws, or "" where it met; changed(rendezvous) makes one of them wrong.
std::vector<std::string> meet_all(std::vector<Rendezvous> rendezvous) {
  std::vector<std::string> errors(rendezvous.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < rendezvous.size(); ++i)
    threads.emplace_back([&, i] {
      try {
        const Connections connections = meet(rendezvous[i]);
        if (static_cast<int>(connections.names.size()) != rendezvous[i].world_size)
          errors[i] = "too few names";
      } catch (const Error& error) {
        errors[i] = error.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return errors;
}

std::vector<Rendezvous> ranks_at(const Place& place, int world_size, double timeout_s) {
  std::vector<Rendezvous> all;
  for (int rank = 0; rank < world_size; ++rank) {
    all.push_back(place.of(rank, world_size));
    all.back().timeout_s = timeout_s;
  }
  return all;
}

void check_says(const std::string& text, const std::string& part) {
  CHECK_MESSAGE(text.find(part) != std::string::npos, text);
}

}  // namespace

TEST_CASE("all ranks meet, whoever comes first, and strangers at the door do not matter") {
  Place place;
  auto ranks = ranks_at(place, 6, 5);
  // One that hangs up, one that talks nonsense, one that says nothing.
  std::string address, why;
  const Endpoint door{"127.0.0.1", static_cast<uint16_t>(std::stoi(ranks[0].init.substr(16)))};
  connect_to(door, after(1), address, why);
  const Descriptor nonsense = connect_to(door, after(1), address, why),
                   silent = connect_to(door, after(1), address, why);
  send_all(nonsense, std::as_bytes(std::span("GET / HTTP/1.1\r\n\r\n")), after(1));
  std::rotate(ranks.begin(), ranks.begin() + 2, ranks.end());
  for (const std::string& error : meet_all(ranks)) CHECK(error == "");
}

TEST_CASE("a file is a place to meet; one of an earlier run is not taken for this one's") {
  const TemporaryDirectory folder;
  for (const char* before :
       {"", "{\"nonce\": \"old\", \"addresses\": [\"127.0.0.1\"], \"port\": 1}",
        "{\"nonce\": ", "{\"nonce\": \"new\", \"addresses\": [\"127.0.0.1\"], \"port\": 1}"}) {
    std::vector<Rendezvous> ranks(3);
    for (int rank = 0; rank < 3; ++rank)
      ranks[rank] = {rank, 3, fmt::format("file://{}", (folder / "id").string()), "new", "1", 5, -1};
    if (*before) write_text_atomically(folder / "id", before);
    for (const std::string& error : meet_all(ranks)) CHECK(error == "");
    CHECK(!std::filesystem::exists(folder / "id"));
  }
  // Rank 0 never comes.
  write_text_atomically(folder / "id", "{\"nonce\": \"old\", \"addresses\": [\"127.0.0.1\"], \"port\": 1}");
  const auto errors =
      meet_all({{1, 3, fmt::format("file://{}", (folder / "id").string()), "new", "1", 0.3, -1}});
  check_says(errors[0], "holds the nonce 'old' of another run and this one's is 'new'");
}

TEST_CASE("missing ranks are named by all who came") {
  Place place;
  auto ranks = ranks_at(place, 5, 2);
  ranks.erase(ranks.begin() + 3);
  ranks.erase(ranks.begin() + 1);
  const auto begin = Clock::now();
  for (const std::string& error : meet_all(ranks))
    check_says(error, "2 of 5 ranks have not come: 1, 3 (here: 0, 2, 4)");
  CHECK(Clock::now() - begin < std::chrono::seconds(6));
}

TEST_CASE("no rank 0, or something else in its place") {
  Place place;
  std::vector<Rendezvous> ranks = {place.of(1, 2)};
  ranks[0].timeout_s = 0.4;
  SUBCASE("nobody listens") {
    place.close();
    check_says(meet_all(ranks)[0],
               fmt::format("found no rank 0 at {} within 0.4 s: Connection refused", ranks[0].init));
  }
  SUBCASE("nobody listens any more") {
    place.close();
    ranks[0].host_listens = true;
    ranks[0].timeout_s = 20;
    const auto begin = Clock::now();
    check_says(meet_all(ranks)[0], fmt::format("rank 0 has ended before rank 1 met it at {}", ranks[0].init));
    CHECK(Clock::now() - begin < std::chrono::seconds(10));
  }
  SUBCASE("a listener that says nothing") {
    check_says(meet_all(ranks)[0], "accepts connections but does not answer like rank 0");
  }
  SUBCASE("another service") {
    const Descriptor listener = listen_on(0, true);
    ranks[0].init = fmt::format("tcp://127.0.0.1:{}", port_of(listener));
    std::thread service([&] {
      std::string address;
      const Descriptor guest = accept_from(listener, after(2), address);
      send_all(guest, std::as_bytes(std::span("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n")), after(1));
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    });
    check_says(meet_all(ranks)[0], "what answers is not rank 0 of sinklora");
    service.join();
  }
  SUBCASE("no such host") {
    ranks[0].init = "tcp://no-such-host.invalid:2000";
    check_says(meet_all(ranks)[0], "found no rank 0 at tcp://no-such-host.invalid:2000");
  }
}

TEST_CASE("ranks that do not fit together are refused at once, and all learn why") {
  struct Case {
    std::function<void(Rendezvous&)> change;
    const char *stranger, *others;
  };
  const std::vector<Case> cases = {
      {[](Rendezvous& r) { r.nonce = "foreign"; }, "belongs to another run", "1 of 3 ranks have not come: 2"},
      {[](Rendezvous& r) { r.rank = 1; }, "two processes that say they are rank 1",
       "two processes that say they are rank 1"},
      {[](Rendezvous& r) { r.world_size = 4; }, "says there are 4 ranks, rank 0 says 3",
       "says there are 4 ranks"},
      {[](Rendezvous& r) { r.version = "2.0"; }, "is version 2.0 (protocol 1), rank 0 is 1.0",
       "is version 2.0"},
  };
  for (const Case& one : cases) {
    CAPTURE(one.stranger);
    Place place;
    auto ranks = ranks_at(place, 3, 2);
    one.change(ranks[2]);
    const auto errors = meet_all(ranks);
    check_says(errors[0], one.others);
    // Two processes of one rank: either may be the one that came first.
    if (ranks[2].rank != 1) check_says(errors[2], one.stranger);
    // The one that fits may not have come before the run failed.
    CHECK(errors[1] != "");
  }
}

TEST_CASE("a late rank is told, and a rank that dies at the door is named") {
  const TemporaryDirectory folder(memory_folder());
  Place place;
  Processes ranks(3, [&](int rank) -> std::string {
    Rendezvous own = place.of(rank, 3);
    own.timeout_s = 2;
    place.close();
    if (rank == 1) eventually(50, [&] { return std::filesystem::exists(folder / "too late"); });
    meet(own);
    return "met";
  });
  place.close();
  check_says(ranks.end(0, 20).text, "1 of 3 ranks have not come: 1");
  check_says(ranks.end(2, 20).text, "1 of 3 ranks have not come: 1");
  write_text_atomically(folder / "too late", "");
  check_says(ranks.end(1, 20).text, "Connection refused");

  Place other;
  Processes dying(3, [&](int rank) -> std::string {
    Rendezvous own = other.of(rank, 3);
    other.close();
    if (rank == 1) {
      ::alarm(0);
      ::sleep(10);
    }
    meet(own);
    return "met";
  });
  other.close();
  ::usleep(1'000'000);  // it has been let in by then
  ::kill(dying.id(2), SIGKILL);
  check_says(dying.end(0, 20).text, "rank 2 on");
}

TEST_CASE("what cannot be a place is refused with the variable's name") {
  for (const char* init : {"", "host:1", "tcp://", "tcp://host", "tcp://:1", "tcp://host:0",
                           "tcp://host:65536", "tcp://host:1x", "http://host:1"}) {
    CAPTURE(init);
    for (const int rank : {0, 1}) {
      Rendezvous own{rank, 2, init, "n", "1", 0.2, -1};
      CHECK_THROWS_WITH_AS(meet(own), doctest::Contains("SINKLORA_INIT"), Error);
    }
  }
  CHECK_THROWS_WITH_AS(meet({2, 2, "tcp://127.0.0.1:1", "n", "1", 0.2, -1}), doctest::Contains("rank 2 of 2"),
                       Error);
  const Descriptor taken = listen_on(0, true);
  CHECK_THROWS_WITH_AS(meet({0, 2, fmt::format("tcp://127.0.0.1:{}", port_of(taken)), "n", "1", 0.2, -1}),
                       doctest::Contains("choose another port"), Error);
}
