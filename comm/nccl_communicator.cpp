#include "comm/nccl_communicator.h"

#include <cuda_runtime.h>
#include <nccl.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/flight_record.h"
#include "comm/socket.h"
#include "comm/watchdog.h"

namespace sinklora {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(1);

void check_cuda(cudaError_t code, const char* statement) {
  if (code != cudaSuccess)
    fail(ExitCode::internal, "CUDA: {} failed: {} ({})", statement, cudaGetErrorString(code),
         cudaGetErrorName(code));
}
#define CUDA(statement) check_cuda((statement), #statement)

// Outlives the communicator where ncclCommAbort does.
struct Handle {
  std::mutex in_use;
  ncclComm_t comm = nullptr;
  bool aborted = false;
};

class Nccl : public Communicator {
 public:
  Nccl(std::unique_ptr<TcpCommunicator> host, int device, cudaStream_t compute,
       const CommunicatorOptions& options)
      : host_(std::move(host)), device_(device), compute_(compute), options_(options) {
    CUDA(cudaSetDevice(device_));
    refuse_shared_device();
    int least = 0, greatest = 0;
    CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    // Before the kernels of the backward, which fill every free place.
    CUDA(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest));
    CUDA(cudaEventCreateWithFlags(&ready_, cudaEventDisableTiming));
    connect();
    host_->watchdog().on_verdict([handle = handle_] { abort_elsewhere(handle); });
    watcher_ = std::thread([this] { watch(); });
  }

  ~Nccl() override {
    if (std::uncaught_exceptions() > exceptions_) abort("left by an exception");
    try {
      finish();
    } catch (const std::exception&) {  // the verdict has ended NCCL
    }
    {
      const std::lock_guard lock(mutex_);
      leaving_ = true;
    }
    changed_.notify_all();
    watcher_.join();
    host_->watchdog().on_verdict({});
    disconnect();
    for (const Call& call : calls_) cudaEventDestroy(call.done);
    for (const cudaEvent_t event : spare_) cudaEventDestroy(event);
    cudaEventDestroy(ready_);
    if (host_->watchdog().verdict().empty()) cudaStreamDestroy(stream_);  // it could wait for a dead peer
  }

  int rank() const override { return host_->rank(); }
  int world_size() const override { return host_->world_size(); }

  Ticket start_all_reduce_sum(std::span<float> bucket) override {
    return start("all_reduce_sum", bucket.size_bytes(), [&] {
      return ncclAllReduce(bucket.data(), bucket.data(), bucket.size(), ncclFloat32, ncclSum, handle_->comm,
                           stream_);
    });
  }
  Ticket start_broadcast(std::span<std::byte> bytes, int root) override {
    check_root(world_size(), root);
    return start("broadcast", bytes.size(), [&] {
      return ncclBroadcast(bytes.data(), bytes.data(), bytes.size(), ncclUint8, root, handle_->comm, stream_);
    });
  }
  Ticket start_all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    check_gather_sizes(world_size(), mine, all);
    return start("all_gather", mine.size(), [&] {
      return ncclAllGather(mine.data(), all.data(), mine.size(), ncclUint8, handle_->comm, stream_);
    });
  }
  void wait(Ticket ticket) override {
    check();
    const std::lock_guard lock(mutex_);
    if (ticket == 0 || ticket > started_) fail_internal("wait for call {} of {}", ticket, started_);
    for (const Call& call : calls_)  // one that is not in the list is done
      if (call.ticket == ticket) CUDA(cudaStreamWaitEvent(compute_, call.done, 0));
  }
  void finish() override {
    std::unique_lock lock(mutex_);
    while (!calls_.empty() && host_->watchdog().verdict().empty()) changed_.wait_for(lock, 10 * kPoll);
    lock.unlock();
    check();
  }
  void sum_on_host(std::span<double> values) override { host_->sum_on_host(values); }
  void gather_on_host(std::span<const std::byte> mine, std::span<std::byte> all) override {
    host_->gather_on_host(mine, all);
  }
  void barrier() override { host_->barrier(); }
  void leave_record_in(const std::filesystem::path& folder) override { host_->leave_record_in(folder); }
  void abort(const std::string& reason) noexcept override { host_->abort(reason); }

 private:
  void check() const { host_->watchdog().check(); }

  struct Call {
    Ticket ticket;
    cudaEvent_t done;
  };

  void refuse_shared_device() {
    struct Place {
      char host[64];
      cudaUUID_t device;
    };
    Place mine{};
    ::gethostname(mine.host, sizeof mine.host - 1);
    cudaDeviceProp properties;
    CUDA(cudaGetDeviceProperties(&properties, device_));
    mine.device = properties.uuid;
    const std::vector<Place> all = gather(*host_, std::vector{mine});
    for (size_t a = 0; a < all.size(); ++a)
      for (size_t b = a + 1; b < all.size(); ++b)
        if (std::memcmp(&all[a], &all[b], sizeof(Place)) == 0)
          fail(ExitCode::communicator,
               "ranks {} and {} are both on one GPU of {}; start at most one rank per GPU, or see that the "
               "launcher "
               "sets the local rank",
               a, b, all[a].host);
  }

  void connect() {
    // Other threads of this program do not read the environment.
    if (::setenv("NCCL_ALGO", "Ring", 0) != 0) fail(ExitCode::communicator, "cannot set NCCL_ALGO");
    ncclUniqueId id{};
    if (rank() == 0) require(ncclGetUniqueId(&id), "ncclGetUniqueId");
    host_->broadcast(std::as_writable_bytes(std::span(&id, 1)), 0);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclResult_t result = ncclCommInitRankConfig(&handle_->comm, world_size(), id, rank(), &config);
    try {
      settle(result, "ncclCommInitRankConfig");
    } catch (const std::exception& error) {
      abort(error.what());
      abort_elsewhere(handle_);
      throw;
    }
  }

  void disconnect() {
    const std::lock_guard lock(handle_->in_use);
    if (!handle_->comm || handle_->aborted || !host_->watchdog().verdict().empty()) return;
    try {
      settle(ncclCommFinalize(handle_->comm), "ncclCommFinalize");
      ncclCommDestroy(handle_->comm);
      handle_->comm = nullptr;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "sinklora: rank %d: %s\n", rank(), error.what());
    }
  }

  static void require(ncclResult_t result, const char* statement) {
    if (result != ncclSuccess)
      fail(ExitCode::communicator, "NCCL: {} failed: {}; NCCL_DEBUG=INFO tells more", statement,
           ncclGetErrorString(result));
  }

  // A non-blocking communicator may answer that it is still at it. Its time-out comes after the watchdog's,
  // which knows who is late.
  void settle(ncclResult_t result, const char* statement) {
    const Deadline deadline = after(options_.timeout_s + std::max(10 * host_->watchdog().beat_s(), 2.0));
    while (result == ncclInProgress) {
      check();
      if (Clock::now() >= deadline)
        fail(ExitCode::communicator, "NCCL: {} is not done after {} s; NCCL_DEBUG=INFO tells more", statement,
             options_.timeout_s);
      std::this_thread::sleep_for(kPoll);
      require(ncclCommGetAsyncError(handle_->comm, &result), "ncclCommGetAsyncError");
    }
    require(result, statement);
  }

  template <class Work>
  Ticket start(const char* op, size_t bytes, Work work) {
    check();
    CUDA(cudaEventRecord(ready_, compute_));
    CUDA(cudaStreamWaitEvent(stream_, ready_, 0));
    const cudaEvent_t done = take_event();
    host_->flight_record().start(Lane::device, op, static_cast<int64_t>(bytes));
    try {
      const std::lock_guard lock(handle_->in_use);
      if (handle_->aborted) check();
      settle(work(), op);
    } catch (const std::exception& error) {
      blame(error.what());
      throw;
    }
    CUDA(cudaEventRecord(done, stream_));
    {
      const std::lock_guard lock(mutex_);
      calls_.push_back({++started_, done});
    }
    changed_.notify_all();
    return started_;
  }

  cudaEvent_t take_event() {
    const std::lock_guard lock(mutex_);
    cudaEvent_t event = nullptr;
    if (spare_.empty()) {
      CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    } else {
      event = spare_.back();
      spare_.pop_back();
    }
    return event;
  }

  // Sees calls end and NCCL fail. Whether a call takes too long is for the watchdog to say, who knows the
  // others.
  void watch() {
    try {
      CUDA(cudaSetDevice(device_));
      std::unique_lock lock(mutex_);
      while (!leaving_) {
        if (calls_.empty())
          changed_.wait_for(lock, 100 * kPoll);
        else
          changed_.wait_for(lock, kPoll);
        retire();
        lock.unlock();
        ncclResult_t state = ncclSuccess;
        {
          const std::lock_guard use(handle_->in_use);
          if (handle_->aborted) return;
          require(ncclCommGetAsyncError(handle_->comm, &state), "ncclCommGetAsyncError");
        }
        if (state != ncclInProgress) require(state, "a call on a GPU");
        lock.lock();
      }
    } catch (const std::exception& error) {
      blame(error.what());
    }
  }

  // NCCL may notice first that a peer died, but knows no names: rank 0 gets the time to tell.
  void blame(const std::string& what) {
    if (host_->watchdog().verdict_within(std::max(4 * host_->watchdog().beat_s(), 0.5)).empty()) abort(what);
  }

  void retire() {  // with mutex_ held
    while (!calls_.empty()) {
      const cudaError_t state = cudaEventQuery(calls_.front().done);
      if (state == cudaErrorNotReady) return;
      check_cuda(state, "cudaEventQuery");
      spare_.push_back(calls_.front().done);
      calls_.pop_front();
      host_->flight_record().finish(Lane::device);
      changed_.notify_all();
    }
  }

  static void abort_elsewhere(const std::shared_ptr<Handle>& handle) {
    std::thread([handle] {
      const std::lock_guard lock(handle->in_use);
      if (handle->comm && !std::exchange(handle->aborted, true)) ncclCommAbort(handle->comm);
    }).detach();
  }

  const std::unique_ptr<TcpCommunicator> host_;
  const int device_;
  const cudaStream_t compute_;
  const CommunicatorOptions options_;
  const int exceptions_ = std::uncaught_exceptions();
  const std::shared_ptr<Handle> handle_ = std::make_shared<Handle>();
  cudaStream_t stream_ = nullptr;
  cudaEvent_t ready_ = nullptr;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Call> calls_;  // under way, oldest first
  std::vector<cudaEvent_t> spare_;
  Ticket started_ = 0;
  bool leaving_ = false;
  std::thread watcher_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<TcpCommunicator> host, int device,
                                                     void* compute_stream,
                                                     const CommunicatorOptions& options) {
  return std::make_unique<Nccl>(std::move(host), device, static_cast<cudaStream_t>(compute_stream), options);
}

std::string nccl_version() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return "unknown";
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace sinklora
