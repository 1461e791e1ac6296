#include "model/safetensors.h"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <limits>

#include "base/random.h"
#include "test/clock.h"
#include "test/model/files.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

std::string open_error(const std::string& bytes) {
  const TemporaryDirectory folder;
  write_bytes(folder / "x.safetensors", bytes);
  return error_of([&] { SafetensorsFile(folder / "x.safetensors"); });
}
std::string header_error(const std::string& header, size_t bytes = 4) {
  return open_error(container(header, bytes));
}

const std::string kOne = R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})";

int64_t peak_memory_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024;
}

}  // namespace

TEST_CASE("safetensors: the vectors of the reference's own tests are refused, each by its own name") {
  check_contains(open_error(""), "too few");
  check_contains(open_error(std::string("<").append(7, '\0')), "reaches beyond");
  check_contains(open_error(length_prefix(1) + "\xff"), "does not begin with '{'");
  check_contains(open_error(length_prefix(1) + "{"), "not valid JSON");
  check_contains(open_error(length_prefix(0xffffff000000003c) + "{}"), "larger than 100000000");
  check_contains(header_error(R"({"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,4]}})", 4),
                 "which fills 16");
  std::string same = "{";
  for (int i = 0; i < 10; ++i)
    same += std::string(i ? "," : "") + R"("w_)" + std::to_string(i) +
            R"(":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]})";
  check_contains(header_error(same + "}", 16), "overlaps");
  const std::string fine = R"({"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}})";
  CHECK(header_error(fine, 16).empty());
  check_contains(open_error(container(fine, 16) + "extra_bogus_data_for_polyglot_file"), "belong to none");
  check_contains(header_error(fine, 14), "truncated");
  check_contains(header_error(R"({"test":{"dtype":"I32","shape":[2,2],"data_offsets":[16,32]}})", 32),
                 "hole");
  check_contains(header_error(R"({"test":{"dtype":"I32","shape":[2,2],"data_offsets":[16,0]}})", 16),
                 "before it begins");
}

TEST_CASE("safetensors: sizes that overflow are refused before anything is allocated") {
  const int64_t before = peak_memory_bytes();
  check_contains(
      header_error(R"({"a":{"dtype":"I32","shape":[2,18446744073709551614],"data_offsets":[0,16]}})", 16),
      "overflows");
  check_contains(
      header_error(R"({"a":{"dtype":"I32","shape":[2,9223372036854775807],"data_offsets":[0,16]}})", 16),
      "overflows");
  check_contains(
      header_error(R"({"a":{"dtype":"I64","shape":[2305843009213693951],"data_offsets":[0,16]}})", 16),
      "overflows");
  check_contains(
      header_error(R"({"a":{"dtype":"I32","shape":[99999999999999999999],"data_offsets":[0,16]}})", 16),
      "wanted whole");
  check_contains(header_error(R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,18446744073709551615]}})"),
                 "truncated");
  for (const uint64_t length : {uint64_t{100'000'001}, uint64_t{1} << 63, ~uint64_t{0}}) {
    const TemporaryDirectory folder;
    write_bytes(folder / "x.safetensors", length_prefix(length));
    const double start = thread_seconds();  // of work: a disk or other programs may take their time
    check_contains(error_of([&] { SafetensorsFile(folder / "x.safetensors"); }), "larger than 100000000");
    CHECK(thread_seconds() - start < 0.1);
  }
  CHECK(peak_memory_bytes() - before <
        (1 << 20) + (1 << 20));  // 1 MiB of ours, 1 MiB for the allocator's own pages
}

TEST_CASE("safetensors: what the format allows is accepted") {
  CHECK(header_error(kOne).empty());
  CHECK(header_error(std::string(" \r\n\t").append(kOne).append(" \r \t\n")).empty());
  CHECK(header_error("{}", 0).empty());
  CHECK(header_error(R"({"a":{"dtype":"F32","shape":[2,0],"data_offsets":[0,0]}})", 0).empty());
  CHECK(header_error(R"({"":{"shape":[1],"data_offsets":[0,4],"dtype":"F32"}})").empty());
  const std::string name(10'000, 'n');
  CHECK(header_error(fmt::format(R"({{"{}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}})", name))
            .empty());
  const std::string unicode =
      "{\"\u65e5\\ud83d\\ude00\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
      "\"__metadata__\":{\"k\":\"v\"}}";
  const auto length = static_cast<int64_t>(unicode.size());
  const std::vector<TensorInfo> tensors = parse_safetensors_header(unicode, 8 + length + 4, "x");
  CHECK(tensors.at(0).name == "\u65e5\U0001f600");
  CHECK(tensors[0].offset == 8 + length);
}

TEST_CASE("safetensors: everything else in a header is refused") {
  const auto tensor = [](const std::string& body) {
    return header_error(fmt::format("{{\"a\":{{{}}}}}", body));
  };
  check_contains(
      header_error(
          R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})"),
      "occurs twice");
  check_contains(tensor(R"("dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4])"), "occurs twice");
  check_contains(header_error(R"({"__metadata__":{"x":1}})", 0), "strings only");
  check_contains(header_error(R"({"__metadata__":{"x":"1","x":"2"}})", 0), "occurs twice");
  check_contains(header_error(R"({"__metadata__":null})", 0), "object of strings");
  check_contains(header_error(R"({"__metadata__":{"x":{}}})", 0), "strings only");
  for (const char* number :
       {"-1", "-0", "1.0", "1e0", "0.0", "true", "null", "\"1\"", "[1]", "{}", "1e999", "01", "+1", "NaN"}) {
    CAPTURE(number);
    CHECK(!tensor(fmt::format(R"("dtype":"F32","shape":[{}],"data_offsets":[0,4])", number)).empty());
    CHECK(!tensor(fmt::format(R"("dtype":"F32","shape":[],"data_offsets":[{},4])", number)).empty());
  }
  check_contains(tensor(R"("dtype":"F32","shape":[],"data_offsets":[0,4,4])"), "wanted");
  check_contains(tensor(R"("dtype":"F32","shape":[],"data_offsets":[0])"), "has 1 numbers");
  check_contains(tensor(R"("dtype":"F32","shape":[])"), "no \"data_offsets\"");
  check_contains(tensor(R"("dtype":"F32","shape":[],"data_offsets":[0,4],"extra":1)"), "unknown key");
  check_contains(tensor(R"("dtype":4,"shape":[],"data_offsets":[0,4])"), "wanted a string for dtype");
  check_contains(header_error("[1]"), "does not begin with '{'");
  check_contains(header_error(std::string("\xef\xbb\xbf").append(kOne)), "does not begin with '{'");
  check_contains(header_error(kOne + std::string(1, '\0')), "NUL");
  check_contains(header_error(kOne + "x"), "not valid JSON");
  check_contains(header_error("{\"a\xff\":{}}"), "not valid JSON");
  check_contains(header_error(std::string(100'000, '[')), "does not begin with '{'");
  check_contains(header_error(std::string("{\"a\":").append(100'000, '[')), "an array");
  check_contains(header_error(std::string("{\"a\":{\"shape\":").append(100'000, '[')), "an array");
  std::string ones = "1";
  for (int i = 0; i < 64; ++i) ones += ",1";
  check_contains(tensor(fmt::format(R"("dtype":"F32","shape":[{}],"data_offsets":[0,4])", ones)),
                 "64 dimensions");
}

TEST_CASE("safetensors: dtypes that are not read are refused by name, and only when they are needed") {
  check_contains(header_error(R"({"a":{"dtype":"F99","shape":[],"data_offsets":[0,4]}})"),
                 "tensor \"a\": unknown dtype \"F99\"");
  check_contains(header_error(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2), "whole bytes");
  CHECK(header_error(R"({"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}})", 2).empty());
  CHECK(header_error(R"({"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}})", 3).empty());
  const SafetensorsFile file(golden("safetensors/foreign.safetensors"));
  CHECK(floats_of(file, "fine") == std::vector<float>{1.5, 2.5});
  const std::string refused = error_of([&] { floats_of(file, "f8"); });
  check_contains(refused, "f8");
  check_contains(refused, "F8_E4M3");
  CHECK(bytes_of(file, "flag") == std::vector<std::byte>{std::byte{1}, std::byte{0}});
}

TEST_CASE("safetensors: a file that shrinks after it was opened is an error") {
  const TemporaryDirectory folder;
  write_safetensors(folder / "x", std::vector{host_tensor("a", {1000}, std::vector<float>(1000, 1.f))});
  const SafetensorsFile file(folder / "x");
  CHECK(::truncate((folder / "x").c_str(), 2000) == 0);
  check_contains(error_of([&] { floats_of(file, "a"); }), "ends at byte 2000");
}

TEST_CASE("safetensors: our writer and the reference's write the same bytes") {
  const SafetensorsFile reference(golden("safetensors/mixed.safetensors"));
  std::vector<HostTensor> tensors;
  for (const TensorInfo& info : reference.tensors())
    tensors.insert(tensors.begin(), {info.name, info.dtype, info.shape, bytes_of(reference, info.name)});
  REQUIRE(tensors.size() == 10);
  const TemporaryDirectory folder;
  write_safetensors(folder / "x", tensors);
  CHECK(read_text(folder / "x", 10'000) == read_text(golden("safetensors/mixed.safetensors"), 10'000));
  CHECK(SafetensorsFile(golden("safetensors/nothing.safetensors")).tensors().empty());

  const SafetensorsFile ours(folder / "x");
  const std::vector<float> ramp{-2.5, -1.5, -0.5, 0.5, 1.5, 2.5};
  for (const char* name : {"z.f32", "b.bf16", "c.f16", "d.f64"}) CHECK(floats_of(ours, name) == ramp);
  std::vector<float> middle(2);
  ours.read(*ours.find("c.f16"), 3, middle);
  CHECK(middle == std::vector<float>{0.5, 1.5});
  CHECK_THROWS_AS(ours.read(*ours.find("c.f16"), 5, middle), Error);
  CHECK(ours.find("scalar")->shape.empty());
  CHECK(ours.find("absent") == nullptr);
}

TEST_CASE(
    "safetensors: what is written is read back, whatever the sizes; headers begin with { and fill 8 bytes") {
  const RandomStream random(5, "safetensors test");
  const TemporaryDirectory folder;
  for (uint64_t round = 0; round < 40; ++round) {
    std::vector<HostTensor> tensors;
    for (uint64_t i = 0; i < random.below(round * 100, 6); ++i) {
      const auto pick = [&](uint64_t k, uint64_t bound) {
        return static_cast<int64_t>(random.below(round * 100 + 10 * i + k + 1, bound));
      };
      const DType dtype = std::array{DType::f32, DType::bf16, DType::f16}[static_cast<size_t>(pick(0, 3))];
      std::vector<int64_t> shape(static_cast<size_t>(pick(1, 3)));
      int64_t count = 1;
      for (int64_t& dim : shape) count *= dim = pick(2, 5);
      tensors.push_back(host_tensor(fmt::format("t{}", i), shape,
                                    std::vector<float>(static_cast<size_t>(count), static_cast<float>(i)),
                                    dtype));
    }
    write_safetensors(folder / "x", tensors);
    const std::string bytes = read_text(folder / "x", 1 << 20);
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    CHECK(length % 8 == 0);
    CHECK(std::string_view(bytes).substr(8).starts_with(R"({"__metadata__":{"format":"pt"})"));
    const SafetensorsFile file(folder / "x");
    REQUIRE(file.tensors().size() == tensors.size());
    for (const HostTensor& tensor : tensors) {
      CHECK(file.find(tensor.name)->shape == tensor.shape);
      CHECK(bytes_of(file, tensor.name) == tensor.data);
    }
  }
}

TEST_CASE("safetensors: the writer refuses what would be a broken file, and leaves nothing") {
  const TemporaryDirectory folder;
  const HostTensor one = host_tensor("a", {1}, {1.f});
  CHECK_THROWS_AS(write_safetensors(folder / "x", std::vector{one, one}), Error);
  CHECK_THROWS_AS(write_safetensors(folder / "x", std::vector{host_tensor("__metadata__", {1}, {1.f})}),
                  Error);
  CHECK_THROWS_AS(write_safetensors(folder / "x", std::vector{host_tensor("a", {2}, {1.f})}), Error);
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("safetensors: floats are rounded to nearest even on their way out") {
  std::vector<std::byte> bytes;
  append_as(DType::bf16, std::vector{1.00390625f, -0.0f}, bytes);
  append_as(DType::f16, std::vector{65504.0f}, bytes);
  std::vector<uint16_t> words(3);
  std::memcpy(words.data(), bytes.data(), 6);
  CHECK(words == std::vector<uint16_t>{0x3f80, 0x8000, 0x7bff});
}

TEST_CASE("safetensors: a pointer of Git LFS is told from a damaged file") {
  const TemporaryDirectory folder;
  write_bytes(folder / "x.safetensors",
              "version https://git-lfs.github.com/spec/v1\noid "
              "sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5"
              "e2ca24d17e2393\nsize 12345\n");
  check_contains(error_of([&] { SafetensorsFile file(folder / "x.safetensors"); }),
                 "looks like a Git LFS pointer to the file: run git lfs pull");
}
