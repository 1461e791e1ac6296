#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/machine.h"
#include "base/random.h"
#include "kernels/dtype.h"
#include "test/temporary.h"

using namespace sinklora;
using sinklora::test::TemporaryDirectory;

TEST_CASE("philox equals the published test vectors of Philox4x32-10") {
  CHECK(philox({0, 0, 0, 0}, {0, 0}) ==
        std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  const uint32_t f = 0xffffffff;
  CHECK(philox({f, f, f, f}, {f, f}) ==
        std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
}

TEST_CASE("normal numbers have mean 0 and variance 1, and streams differ") {
  const RandomStream a(7, "a"), b(7, "b");
  double sum = 0, squares = 0, product = 0;
  const int n = 100000;
  for (int i = 0; i < n; ++i) {
    const double x = a.normal(static_cast<uint64_t>(i)), y = b.normal(static_cast<uint64_t>(i));
    sum += x, squares += x * x, product += x * y;
  }
  // Five standard errors of each estimate.
  CHECK(std::fabs(sum / n) < 5 / std::sqrt(n));
  CHECK(std::fabs(squares / n - 1) < 5 * std::sqrt(2.0 / n));
  CHECK(std::fabs(product / n) < 5 / std::sqrt(n));
}

TEST_CASE("a permutation hits every element once, for every size; epochs differ") {
  for (uint64_t size = 1; size < 300; ++size) {
    const Permutation permutation(size, 3, 1);
    std::set<uint64_t> seen;
    for (uint64_t i = 0; i < size; ++i) seen.insert(permutation(i));
    REQUIRE(seen.size() == size);
    REQUIRE(*seen.rbegin() == size - 1);
  }
  int same = 0;
  for (uint64_t i = 0; i < 1000; ++i) same += Permutation(1000, 3, 0)(i) == Permutation(1000, 3, 1)(i);
  CHECK(same < 10);
}

TEST_CASE("guarded JSON refuses what the library lets pass") {
  CHECK(parse_json(R"({"a":[1,{"b":2}]})", "x")["a"][1]["b"] == 2);
  CHECK_THROWS_WITH_AS(parse_json(R"({"a":1,"a":2})", "x"), doctest::Contains("occurs twice"), Error);
  CHECK_THROWS_WITH_AS(parse_json(R"({"a":{"b":1,"b":2}})", "x"), doctest::Contains("occurs twice"), Error);
  CHECK_THROWS_WITH_AS(parse_json(std::string(100000, '['), "x"), doctest::Contains("nesting"), Error);
  CHECK_THROWS_AS(parse_json("{\"a\":\"\xff\"}", "x"), Error);
  CHECK_THROWS_AS(parse_json("{} trailing", "x"), Error);
  CHECK_THROWS_AS(parse_json("", "x"), Error);
}

TEST_CASE("what JSON holds comes to a terminal as printable characters") {
  for (const char* text : {"{\"\\u001b[31mred\":1,\"\\u001b[31mred\":2}", "{\"a\":\"\x9b\x31mred\"}",
                           "{\"a\":\"\xc2\x9b\x31mred\x7f\n\"}"})
    try {
      parse_json(text, "x");
      FAIL(text);
    } catch (const Error& error) {
      CAPTURE(error.what());
      for (const char* c = error.what(); *c; ++c) CHECK((*c >= ' ' && *c <= '~'));
    }
  CHECK_THROWS_WITH_AS(parse_json(R"({"a":"\ud83d"})", "x"), doctest::Contains("half of a character"), Error);
  CHECK_THROWS_WITH_AS(parse_json("{\n\"a\":\"\\ud83d\"}", "x"), doctest::Contains("at line 2, column 12"),
                       Error);
  CHECK_THROWS_WITH_AS(parse_json("{\"a\":\"a lone surrogate U+D83D \1\"}", "x"),
                       doctest::Contains("not valid JSON"), Error);
  CHECK_THROWS_WITH_AS(parse_json("{\"a\":\"" + std::string(100'000, 'b'), "x"), doctest::Contains("bbb..."),
                       Error);
}

TEST_CASE("atomic files and folders appear whole or not at all") {
  const TemporaryDirectory folder;
  {
    AtomicFile file(folder / "a");
    file.write("half");
  }
  CHECK(std::filesystem::is_empty(folder.path()));
  write_text_atomically(folder / "a", "whole");
  CHECK(read_text(folder / "a", 100) == "whole");
  CHECK_THROWS_AS(read_text(folder / "a", 4), Error);
  {
    AtomicDirectory directory(folder / "d");
    std::ofstream(directory.path() / "f") << "x";
  }
  CHECK(!std::filesystem::exists(folder / "d"));
  AtomicDirectory directory(folder / "d");
  std::ofstream(directory.path() / "f") << "x";
  directory.commit();
  CHECK(read_text(folder / "d/f", 10) == "x");
  CHECK_THROWS_AS(AtomicDirectory(folder / "d"), Error);
}

TEST_CASE("a writer removes what killed ones of its name have left, and nothing else") {
  const TemporaryDirectory folder;
  const auto left = [&](const std::string& name) { return std::filesystem::exists(folder / name); };
  AtomicDirectory other(folder / "d");  // another writer of the same name, under way
  AtomicFile file(folder / "f");
  for (const char* name : {".tmp-d-17", ".tmp-d-17.0", ".tmp-d-old-17.0", ".tmp-d", "d-17"})
    std::filesystem::create_directory(folder / name);
  std::ofstream(folder / ".tmp-d-17.0/weights") << "x";
  std::ofstream(folder / ".tmp-f-17.0") << "x";
  const AtomicDirectory directory(folder / "d");
  CHECK(!left(".tmp-d-17"));
  CHECK(!left(".tmp-d-17.0"));
  CHECK(std::filesystem::exists(other.path()));
  CHECK(directory.path() != other.path());
  for (const char* name : {".tmp-d-old-17.0", ".tmp-d", "d-17", ".tmp-f-17.0"}) CHECK(left(name));

  remove_abandoned(folder / "f");
  CHECK(!left(".tmp-f-17.0"));
  file.write("whole");
  file.commit();
  other.commit();
  remove_abandoned(folder / "d");
  CHECK(read_text(folder / "f", 10) == "whole");
  CHECK(left("d"));
  CHECK(std::filesystem::exists(directory.path()));
}

TEST_CASE("a locked folder keeps a second writer out, until the first one ends") {
  const TemporaryDirectory folder;
  {
    const DirectoryLock first(folder.path());
    try {
      const DirectoryLock second(folder.path());
      FAIL("locked twice");
    } catch (const Error& error) {
      CHECK(error.code == ExitCode::usage);
      CHECK(std::string(error.what()).find("another run is writing there") != std::string::npos);
    }
  }
  CHECK_NOTHROW(DirectoryLock(folder.path()));
  CHECK_THROWS_AS(DirectoryLock(folder / "none"), Error);
}

TEST_CASE("hashes equal published values") {
  CHECK(sha256(std::as_bytes(std::span(std::string_view("abc")))) ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST_CASE("every half and bfloat16 survives the way through float") {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    if (const float value = half_to_float(half); !std::isnan(value)) REQUIRE(float_to_half(value) == half);
    BFloat16 brain;
    brain.bits = half;
    if (const auto value = static_cast<float>(brain); !std::isnan(value))
      REQUIRE(BFloat16(value).bits == half);
    else
      REQUIRE(std::isnan(static_cast<float>(BFloat16(value))));
  }
  CHECK(float_to_half(65520.0f) == 0x7c00);  // halfway to 65536 rounds to infinity
  CHECK(float_to_half(65519.0f) == 0x7bff);
  CHECK(BFloat16(1.00390625f).bits == 0x3f80);  // a tie goes to even
  CHECK(BFloat16(1.01171875f).bits == 0x3f82);
}

TEST_CASE("narrowing refuses to lose bits") {
  CHECK(narrow<int>(int64_t{5}, "x") == 5);
  CHECK_THROWS_AS(narrow<int>(int64_t{1} << 31, "x"), Error);
  CHECK_THROWS_AS(narrow<uint32_t>(-1, "x"), Error);
}

TEST_CASE("available memory is what a container has left, files it has read not counted") {
  const TemporaryDirectory root;
  const std::filesystem::path group = root / "sys/fs/cgroup";
  std::filesystem::create_directories(root / "proc");
  std::filesystem::create_directories(group);
  const auto write = [](const std::filesystem::path& file, const std::string& text) {
    std::ofstream(file) << text;
  };
  write(root / "proc/meminfo", "MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    600 kB\n");
  const auto available = [&] { return look_at_machine(root.path()).available_memory; };
  CHECK(available() == 600 * 1024);  // no control groups at all
  write(group / "memory.max", "max\n");
  write(group / "memory.current", "300000\n");
  CHECK(available() == 600 * 1024);
  write(group / "memory.max", "500000\n");
  CHECK(look_at_machine(root.path()).memory == 500000);
  CHECK(available() == 200000);
  write(group / "memory.stat", "anon 180000\nfile 120000\ninactive_file 70000\nactive_file 30000\n");
  CHECK(available() == 300000);
  write(group / "memory.current", "700000\n");  // above a limit that has just been lowered
  CHECK(available() == 0);
  write(group / "memory.current", "101000\n");
  write(root / "proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 2 kB\n");  // others use the machine up
  CHECK(available() == 2048);
}
