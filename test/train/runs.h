// Runs of the program on a toy, in a folder of their own.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <fstream>

#include "test/temporary.h"
#include "test/train/toy_inputs.h"

namespace sinklora::test {

class Runs {
 public:
  Runs() : folder_(memory_folder()) {
    std::signal(SIGHUP, SIG_DFL);  // what runs inherit, where the tests themselves are under nohup as well
    write_toy_config(folder_ / "model");
    write_stream("data.bin", 40 * kContext);
  }
  void write_stream(const std::string& name, int64_t tokens) const {
    std::ofstream data(folder_ / name, std::ios::binary);
    for (int64_t i = 0; i < tokens; ++i) {
      const auto id = static_cast<uint16_t>(i % 7);
      data.write(reinterpret_cast<const char*>(&id), 2);
    }
  }
  std::filesystem::path out(const std::string& name = "run") const { return folder_ / name; }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string command(const std::string& more, const std::string& name = "run") const {
    return fmt::format(
        "train --model '{}' --init random --trainable full --data '{}' --out '{}' --context {} --warmup 1 {}",
        path("model"), path("data.bin"), out(name).string(), kContext, more);
  }
  int64_t steps(const std::string& name = "run") const {
    std::ifstream file(out(name) / "metrics.jsonl");
    return std::count(std::istreambuf_iterator<char>(file), {}, '\n');
  }

 private:
  const TemporaryDirectory folder_;
};

}  // namespace sinklora::test
