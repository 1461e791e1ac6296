// Two ranks on two machines, as far as the kernel's network namespaces make two of one. It takes root (or
// what a container gives in its place); elsewhere these cases say that they are left out.
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>

#include "base/files.h"
#include "test/comm/processes.h"
#include "test/run_program.h"
#include "test/temporary.h"
#include "test/train/toy_inputs.h"

using namespace sinklora;
using namespace sinklora::test;
namespace fs = std::filesystem;

namespace {

// Two namespaces with a cable between them; rank 0's end has the address 10.213.77.1.
class Network {
 public:
  Network() : names_{fmt::format("sinklora-{}-0", ::getpid()), fmt::format("sinklora-{}-1", ::getpid())} {
    there_ =
        run("ip netns add {0} && ip netns add {1} && "
            "ip link add cable netns {0} type veth peer name cable netns {1} && "
            "ip -n {0} addr add 10.213.77.1/30 dev cable && ip -n {1} addr add 10.213.77.2/30 dev cable && "
            "ip -n {0} link set cable up && ip -n {1} link set cable up");
    if (!there_) MESSAGE("left out: this process may not make network namespaces (ip netns add)");
  }
  ~Network() { run("ip netns delete {0}; ip netns delete {1}"); }
  bool there() const { return there_; }
  std::string inside(int rank) const { return fmt::format("ip netns exec {}", names_[rank]); }

 private:
  bool run(const char* commands) const {
    const std::string filled = fmt::format(fmt::runtime(commands), names_[0], names_[1]);
    const std::string line = fmt::format("({}) >/dev/null 2>&1", filled);
    return std::system(line.c_str()) == 0;
  }
  std::string names_[2];
  bool there_ = false;
};

class Ranks {
 public:
  Ranks() : folder_(memory_folder()) {
    write_toy_config(folder_ / "model");
    std::ofstream stream(folder_ / "data.bin", std::ios::binary);
    for (uint16_t i = 0; i < 20 * kContext; ++i) {
      const auto token = static_cast<uint16_t>(i * i % kVocab);
      stream.write(reinterpret_cast<const char*>(&token), sizeof token);
    }
  }
  std::string command(const std::string& name, int timeout_s) const {
    return fmt::format(
        "train --model '{}' --init random --trainable full --data '{}' --out '{}' --context {} --steps 3 "
        "--attention full --save-every 0 --rank-timeout {}",
        (folder_ / "model").string(), (folder_ / "data.bin").string(), (folder_ / name).string(), kContext,
        timeout_s);
  }
  std::unique_ptr<RunningProgram> start(const Network& network, int rank, const std::string& name,
                                        int timeout_s, const std::string& init,
                                        const std::string& nonce) const {
    return std::make_unique<RunningProgram>(
        command(name, timeout_s), log_path(rank).string(),
        fmt::format("OMP_NUM_THREADS=1 RANK={} LOCAL_RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=1 SINKLORA_INIT={} "
                    "SINKLORA_NONCE={} {}",
                    rank, init, nonce, network.inside(rank)));
  }
  std::string log(int rank) const { return read_text(log_path(rank), 1 << 20); }
  fs::path log_path(int rank) const { return folder_ / fmt::format("log{}", rank); }
  fs::path out(const std::string& name) const { return folder_ / name; }

 private:
  const TemporaryDirectory folder_;
};

std::vector<double> losses(const fs::path& run) {
  std::vector<double> losses;
  std::ifstream file(run / "metrics.jsonl");
  for (std::string line; std::getline(file, line);)
    losses.push_back(parse_json(line, "metrics").at("loss").get<double>());
  return losses;
}

}  // namespace

TEST_CASE(
    "ranks in two network namespaces meet at an address or through a file, and train as on one machine") {
  const Network network;
  if (!network.there()) return;
  const Ranks ranks;
  REQUIRE(run_program(ranks.command("together", 20) + " --gpus 2").exit_code == 0);
  const std::string file = "file://" + ranks.out("meet").string();
  // The third finds the file of the second.
  for (const auto& [name, init] : {std::pair<std::string, std::string>{"address", "tcp://10.213.77.1:29617"},
                                   {"file", file},
                                   {"stale-file", file}}) {
    CAPTURE(name);
    const auto second = ranks.start(network, 1, name, 20, init, name),
               first = ranks.start(network, 0, name, 20, init, name);
    CHECK_MESSAGE(first->exit_code(30) == 0, ranks.log(0));
    CHECK_MESSAGE(second->exit_code(30) == 0, ranks.log(1));
    CHECK(losses(ranks.out(name)).size() == 3);
    CHECK(losses(ranks.out(name)) == losses(ranks.out("together")));
  }
}

TEST_CASE(
    "a wrong port, a stale file or a missing rank in another namespace is an error inside the time-out") {
  const Network network;
  if (!network.there()) return;
  const Ranks ranks;
  const int timeout_s = 2;
  const auto fails = [&](RunningProgram& program, int rank, const std::string& text) {
    CHECK(program.exit_code(timeout_s + 20) == 6);
    CHECK_MESSAGE(ranks.log(rank).find(text) != std::string::npos, ranks.log(rank));
  };
  {
    const auto first = ranks.start(network, 0, "port", timeout_s, "tcp://10.213.77.1:29618", "1"),
               second = ranks.start(network, 1, "port", timeout_s, "tcp://10.213.77.1:29619", "1");
    fails(*first, 0, "1 of 2 ranks have not come: 1 (here: 0)");
    fails(*second, 1, "found no rank 0 at tcp://10.213.77.1:29619 within 2 s: Connection refused");
  }
  {
    const fs::path file = ranks.out("meet");
    write_text_atomically(file, R"({"nonce": "yesterday", "addresses": ["10.213.77.1"], "port": 29620})");
    const auto second = ranks.start(network, 1, "file", timeout_s, "file://" + file.string(), "today");
    fails(*second, 1, "it holds the nonce 'yesterday' of another run and this one's is 'today'");
  }
  {
    const auto first = ranks.start(network, 0, "alone", timeout_s, "tcp://10.213.77.1:29621", "1");
    fails(*first, 0, "1 of 2 ranks have not come: 1 (here: 0)");
  }
}
