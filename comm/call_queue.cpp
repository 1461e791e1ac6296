#include "comm/call_queue.h"

#include <utility>

#include "base/error.h"

namespace sinklora {

CallQueue::CallQueue(FlightRecord& record, std::function<void(const std::string&)> on_failure)
    : record_(record), on_failure_(std::move(on_failure)), thread_([this] { work(); }) {}

CallQueue::~CallQueue() {
  {
    const std::lock_guard lock(mutex_);
    leaving_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

uint64_t CallQueue::start(const char* op, int64_t bytes, std::function<void()> call) {
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) throw Error(ExitCode::communicator, failure_);
  entries_.push({op, bytes, std::move(call)});
  changed_.notify_all();
  return ++started_;
}

void CallQueue::wait(uint64_t ticket) {
  std::unique_lock lock(mutex_);
  if (ticket == 0 || ticket > started_) fail_internal("wait for call {} of {}", ticket, started_);
  changed_.wait(lock, [&] { return done_ >= ticket || !failure_.empty(); });
  if (done_ < ticket) throw Error(ExitCode::communicator, failure_);
}

void CallQueue::finish() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return done_ == started_ || !failure_.empty(); });
  if (!failure_.empty()) throw Error(ExitCode::communicator, failure_);
}

void CallQueue::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return leaving_ || !entries_.empty(); });
    if (leaving_) return;
    const Entry entry = std::move(entries_.front());
    entries_.pop();
    lock.unlock();
    std::string failure;
    try {
      record_.start(Lane::host, entry.op, entry.bytes);
      entry.call();
      record_.finish(Lane::host);
    } catch (const std::exception& error) {
      failure = error.what();
      on_failure_(failure);
    }
    lock.lock();
    if (failure.empty()) {
      ++done_;
    } else {
      failure_ = failure;
      entries_ = {};
    }
    changed_.notify_all();
    if (!failure.empty()) return;
  }
}

}  // namespace sinklora
