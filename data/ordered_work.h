// A few threads work on records; the results come out in the order of the records, whatever the number of
// threads.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace sinklora {

// Memory is bounded: a record is taken up only while those in flight hold fewer than `max_bytes`.
template <class Record, class Result>
class OrderedWork {
 public:
  using Source = std::function<bool(Record&)>;  // never called by two threads at once
  using Work = std::function<Result(const Record&)>;
  using Size = std::function<int64_t(const Record&)>;

  OrderedWork(int64_t workers, int64_t max_bytes, Source source, Size size, Work work)
      : max_bytes_(max_bytes),
        max_items_(static_cast<size_t>(16 * workers)),
        source_(std::move(source)),
        size_(std::move(size)),
        work_(std::move(work)) {
    for (int64_t i = 0; i < workers; ++i) threads_.emplace_back([this] { run(); });
  }

  ~OrderedWork() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  OrderedWork(const OrderedWork&) = delete;
  OrderedWork& operator=(const OrderedWork&) = delete;

  // The next record and its result; false at the end. Rethrows what the source or the work threw, in its
  // turn.
  bool next(Record& record, Result& result) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return items_.empty() ? ended_ : items_.front()->done; });
    if (items_.empty()) return false;
    const std::shared_ptr<Item> item = std::move(items_.front());
    items_.pop_front();
    bytes_ -= item->bytes;
    lock.unlock();
    changed_.notify_all();
    if (item->error) std::rethrow_exception(item->error);
    record = std::move(item->record);
    result = std::move(item->result);
    return true;
  }

 private:
  struct Item {
    Record record;
    Result result;
    std::exception_ptr error;
    int64_t bytes = 0;
    bool done = false;
  };

  // Takes up the next record under the lock, so that numbers and order agree; null at the end.
  std::shared_ptr<Item> take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] {
      return ended_ || items_.empty() || (bytes_ < max_bytes_ && items_.size() < max_items_);
    });
    if (ended_) return nullptr;
    auto item = std::make_shared<Item>();
    try {
      ended_ = !source_(item->record);
      if (!ended_) item->bytes = size_(item->record);
    } catch (...) {
      item->error = std::current_exception();
      item->done = ended_ = true;
      items_.push_back(item);
    }
    if (ended_) {
      lock.unlock();
      changed_.notify_all();
      return nullptr;
    }
    bytes_ += item->bytes;
    items_.push_back(item);
    return item;
  }

  void run() {
    while (const std::shared_ptr<Item> item = take()) {
      try {
        item->result = work_(item->record);
      } catch (...) {
        item->error = std::current_exception();
      }
      {
        const std::lock_guard lock(mutex_);
        item->done = true;
      }
      changed_.notify_all();
    }
  }

  int64_t max_bytes_;
  size_t max_items_;
  Source source_;
  Size size_;
  Work work_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Item>> items_;  // in flight, in order
  int64_t bytes_ = 0;
  bool ended_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace sinklora
