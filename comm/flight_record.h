// What a rank was doing when a run failed: the last calls of its communicator, in memory while it runs,
// written as flight.rankN.json on a failure.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <mutex>
#include <string>

namespace sinklora {

// Calls of one lane are done in order; NCCL's (device) overtake those on host memory.
enum class Lane : uint8_t { host, device };
inline constexpr int kLanes = 2;

struct CallCounts {
  uint64_t started = 0, finished = 0;
};

class FlightRecord {
 public:
  FlightRecord(int rank, int world_size, int capacity = 256);  // of the last calls it holds so many

  uint64_t start(Lane lane, const char* op, int64_t bytes);  // sequence number in its lane, from 1
  void finish(Lane lane);                                    // the oldest one under way in the lane
  CallCounts counts(Lane lane) const;
  std::string last_call() const;  // "call 17, all_reduce_sum of 4.00 MiB, not finished"
  std::string to_json(const std::string& reason) const;
  // Writes flight.rankN.json; a failure to write is said on stderr and nothing else, because it happens on
  // the way out.
  void write(const std::filesystem::path& directory, const std::string& reason) const noexcept;

 private:
  struct Call {
    Lane lane;
    const char* op;
    uint64_t sequence;
    int64_t bytes;
    double started_s, finished_s;  // since construction; finished_s < 0: not finished
  };
  double now() const;

  const int rank_, world_size_;
  const size_t capacity_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  mutable std::mutex mutex_;
  std::deque<Call> calls_;
  CallCounts counts_[kLanes];
};

}  // namespace sinklora
