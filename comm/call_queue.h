// Calls on host memory, done one after another by a thread of their own while the caller computes.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <queue>
#include <string>
#include <thread>

#include "comm/flight_record.h"

namespace sinklora {

class CallQueue {
 public:
  // `on_failure` hears what the first failing call threw, on the queue's thread, before anyone who waits
  // does.
  CallQueue(FlightRecord& record, std::function<void(const std::string&)> on_failure);
  ~CallQueue();  // the call under way ends first; those behind it are dropped
  CallQueue(const CallQueue&) = delete;
  CallQueue& operator=(const CallQueue&) = delete;

  uint64_t start(const char* op, int64_t bytes, std::function<void()> call);
  void wait(uint64_t ticket);
  void finish();

 private:
  struct Entry {
    const char* op;
    int64_t bytes;
    std::function<void()> call;
  };
  void work();

  FlightRecord& record_;
  std::function<void(const std::string&)> on_failure_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::queue<Entry> entries_;
  uint64_t started_ = 0, done_ = 0;
  bool leaving_ = false;
  std::string failure_;
  std::thread thread_;
};

}  // namespace sinklora
