// Ranks on two GPUs: what test/comm/ asks of threads and of TCP, asked of NCCL. A rank is this program run
// again with one test case, because a fork of a process that has used CUDA cannot use it.
#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "base/files.h"
#include "comm/nccl_communicator.h"
#include "kernels/cuda_backend.h"
#include "test/comm/exercise.h"
#include "test/comm/processes.h"
#include "test/comm/thread_communicator.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;
namespace fs = std::filesystem;

namespace {

constexpr int kWorld = 2;

struct Rank {
  Rank(int number, int gpu)
      : ops(make_cuda_ops(DType::f32, gpu)), options(waits()), ranks(join(number, gpu)) {}
  static CommunicatorOptions waits() {
    CommunicatorOptions options;
    options.timeout_s = std::atof(std::getenv("NCCL_TEST_TIMEOUT"));
    options.silence_s = 2;
    options.grace_s = 5;
    return options;
  }
  std::unique_ptr<Communicator> join(int number, int gpu) const {
    Rendezvous rendezvous;
    rendezvous.rank = number;
    rendezvous.world_size = kWorld;
    rendezvous.init = "file://" + (fs::path(std::getenv("NCCL_TEST_FOLDER")) / "meet").string();
    rendezvous.nonce = "test";
    rendezvous.version = "1.0";
    rendezvous.timeout_s = 30;
    return make_nccl_communicator(make_tcp_communicator(rendezvous, options), gpu, ops->native_stream(),
                                  options);
  }
  std::unique_ptr<Ops> ops;
  CommunicatorOptions options;
  std::unique_ptr<Communicator> ranks;
};

class DeviceBuckets : public Buckets {
 public:
  explicit DeviceBuckets(Ops& ops) : ops_(ops) {}
  ~DeviceBuckets() override {
    for (void* memory : held_) ops_.release(memory);
  }
  // Views of whole i32: padded to them.
  void* put(std::span<const std::byte> bytes) override {
    std::vector<std::byte> padded(bytes.begin(), bytes.end());
    padded.resize((bytes.size() + 4) / 4 * 4);
    held_.push_back(ops_.allocate(static_cast<int64_t>(padded.size())));
    ops_.upload(view(held_.back(), padded.size()), padded.data());
    return held_.back();
  }
  void get(std::span<std::byte> bytes, const void* from) override {
    std::vector<std::byte> padded((bytes.size() + 4) / 4 * 4);
    ops_.download(padded.data(), view(const_cast<void*>(from), padded.size()));
    std::copy_n(padded.begin(), bytes.size(), bytes.begin());
  }

 private:
  Tensor view(void* memory, size_t bytes) const {
    return {memory, DType::i32, {static_cast<int64_t>(bytes) / 4}, ops_.device()};
  }
  Ops& ops_;
  std::vector<void*> held_;
};

// Sums for ever; the file shows that the rank has got that far.
void sum_for_ever(Rank& rank) {
  DeviceBuckets buckets(*rank.ops);
  const std::vector<float> ones(3000000, 1);
  const std::span<float> bucket(static_cast<float*>(buckets.put(std::as_bytes(std::span(ones)))),
                                ones.size());
  for (int step = 0;; ++step) {
    rank.ranks->wait(rank.ranks->start_all_reduce_sum(bucket));
    rank.ranks->finish();
    if (step == 10)
      write_text_atomically(
          fs::path(std::getenv("NCCL_TEST_FOLDER")) / fmt::format("under-way{}", rank.ranks->rank()), "");
  }
}

// What rank 1 does in place of its second call, while rank 0 sums.
void go_wrong(Rank& rank, const std::string& how) {
  rank.ranks->barrier();
  if (rank.ranks->rank() == 0) sum_for_ever(rank);
  if (how == "late") ::sleep(20);
  if (how == "throws") throw std::runtime_error("on purpose");
  if (how == "aborts") rank.ranks->abort("disk full");
  if (how == "other way") rank.ranks->barrier();
}

std::string act(const std::string& role, int number) {
  Rank rank(number, role == "one GPU" ? 0 : number);
  if (role == "exercise")
    return exercise(*rank.ranks, 77, 6, [&] { return std::make_unique<DeviceBuckets>(*rank.ops); });
  if (role == "sum for ever") sum_for_ever(rank);
  go_wrong(rank, role);
  return "";
}

// The ranks of one role, as processes.
class Acting {
 public:
  Acting(const std::string& role, double timeout_s) {
    std::fflush(nullptr);
    for (int number = 0; number < kWorld; ++number) {
      const std::string log = (folder_ / fmt::format("log{}", number)).string();
      const pid_t child = ::fork();
      if (child < 0) throw std::runtime_error("cannot fork");
      if (child > 0) {
        ids_.push_back(child);
        continue;
      }
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int file = ::open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      ::dup2(file, 1), ::dup2(file, 2);
      ::setenv("NCCL_TEST_ROLE", role.c_str(), 1);
      ::setenv("NCCL_TEST_RANK", std::to_string(number).c_str(), 1);
      ::setenv("NCCL_TEST_FOLDER", folder_.path().c_str(), 1);
      ::setenv("NCCL_TEST_TIMEOUT", fmt::format("{}", timeout_s).c_str(), 1);
      ::setenv("NCCL_NVLS_ENABLE", "0", 0);
      ::execl("/proc/self/exe", "sinklora_gpu_tests", "-tc=nccl: a rank of a test", nullptr);
      ::_exit(127);
    }
  }
  ~Acting() {
    for (const pid_t id : ids_)
      if (id > 0) {
        ::kill(id, SIGKILL);
        ::waitpid(id, nullptr, 0);
      }
  }
  pid_t id(int number) const { return ids_[static_cast<size_t>(number)]; }
  bool under_way(int number) const {
    return eventually(60, [&] { return fs::exists(folder_ / fmt::format("under-way{}", number)); });
  }
  // Whether it ended in time. What it said is in its log, what it returned or threw in a file.
  bool ended(int number, double seconds) {
    pid_t& id = ids_[static_cast<size_t>(number)];
    const bool ended = eventually(seconds, [&] { return ::waitpid(id, nullptr, WNOHANG) == id; });
    if (ended) id = -1;
    return ended;
  }
  std::string said(int number) const { return text_of(fmt::format("said{}", number)); }
  std::string all_of(int number) const { return said(number) + log(number); }
  std::string log(int number) const { return text_of(fmt::format("log{}", number)); }

 private:
  std::string text_of(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(folder_ / name).rdbuf();
    return text.str();
  }
  TemporaryDirectory folder_;
  std::vector<pid_t> ids_;
};

bool two_gpus() {
  static const bool there = nccl_version() != "not built" && cuda_device_count() >= kWorld;
  if (!there) MESSAGE("left out: it needs NCCL and two GPUs; NCCL is " << nccl_version());
  return there;
}

}  // namespace

// Not a test by itself: what Acting starts.
TEST_CASE("nccl: a rank of a test" * doctest::skip(std::getenv("NCCL_TEST_ROLE") == nullptr)) {
  const int number = std::atoi(std::getenv("NCCL_TEST_RANK"));
  std::string said;
  try {
    said = "returned " + act(std::getenv("NCCL_TEST_ROLE"), number);
  } catch (const std::exception& error) {
    said = std::string("threw ") + error.what();
  }
  write_text_atomically(fs::path(std::getenv("NCCL_TEST_FOLDER")) / fmt::format("said{}", number), said);
}

TEST_CASE("nccl: sums, broadcasts and gathers have the bits of the host's communicators") {
  if (!two_gpus()) return;
  std::string on_threads;
  auto communicators = make_thread_communicators(kWorld, {});
  std::thread other([&] { exercise(*communicators[1], 77, 6); });
  on_threads = exercise(*communicators[0], 77, 6);
  other.join();
  Acting ranks("exercise", 60);
  for (int number = 0; number < kWorld; ++number) {
    CHECK_MESSAGE(ranks.ended(number, 90), ranks.log(number));
    CHECK_MESSAGE(ranks.said(number) == "returned " + on_threads, ranks.all_of(number));
  }
}

TEST_CASE("nccl: a rank that is late, leaves, throws, aborts or goes another way is named") {
  if (!two_gpus()) return;
  for (const std::string how : {"late", "leaves", "throws", "aborts", "other way"}) {
    CAPTURE(how);
    Acting ranks(how, how == "late" ? 4 : 30);
    CHECK_MESSAGE(ranks.ended(0, 40), ranks.log(0));
    // It says so, or its watchdog did where a library would not let go.
    CHECK_MESSAGE(!ranks.said(0).starts_with("returned"), ranks.all_of(0));
    CHECK_MESSAGE(ranks.all_of(0).find("rank 1") != std::string::npos, ranks.all_of(0));
  }
}

TEST_CASE("nccl: a rank that is killed or stopped in mid-sum is named inside the time-out") {
  if (!two_gpus()) return;
  for (const int how : {SIGKILL, SIGSTOP})
    for (int victim = 0; victim < kWorld; ++victim) {
      CAPTURE(how);
      CAPTURE(victim);
      Acting ranks("sum for ever", 30);
      REQUIRE_MESSAGE((ranks.under_way(0) && ranks.under_way(1)), (ranks.log(0) + ranks.log(1)));
      const auto begin = Clock::now();
      REQUIRE(::kill(ranks.id(victim), how) == 0);
      const int other = 1 - victim;
      CHECK_MESSAGE(ranks.ended(other, 15), ranks.log(other));
      const std::string all = ranks.all_of(other);
      CHECK_MESSAGE(all.find(fmt::format("rank {} (", victim)) != std::string::npos, all);
      MESSAGE("ended after " << std::chrono::duration<double>(Clock::now() - begin).count() << " s");
    }
}

TEST_CASE("nccl: two ranks on one GPU are refused") {
  if (nccl_version() == "not built") {
    MESSAGE("left out: this build has no NCCL");
    return;
  }
  Acting ranks("one GPU", 30);
  for (int number = 0; number < kWorld; ++number) {
    CHECK_MESSAGE(ranks.ended(number, 60), ranks.log(number));
    CHECK_MESSAGE(ranks.said(number).find("both on one GPU") != std::string::npos, ranks.all_of(number));
  }
}
