#include "comm/flight_record.h"

#include "base/error.h"
#include "base/files.h"
#include "base/format.h"
#include "base/json.h"

namespace sinklora {

FlightRecord::FlightRecord(int rank, int world_size, int capacity)
    : rank_(rank), world_size_(world_size), capacity_(static_cast<size_t>(capacity)) {
  if (capacity < 1) fail_usage("a flight record of {} calls, wanted at least 1", capacity);
}

double FlightRecord::now() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
}

uint64_t FlightRecord::start(Lane lane, const char* op, int64_t bytes) {
  const std::lock_guard lock(mutex_);
  const uint64_t sequence = ++counts_[static_cast<int>(lane)].started;
  if (calls_.size() == capacity_) calls_.pop_front();
  calls_.push_back({lane, op, sequence, bytes, now(), -1});
  return sequence;
}

void FlightRecord::finish(Lane lane) {
  const std::lock_guard lock(mutex_);
  const uint64_t sequence = ++counts_[static_cast<int>(lane)].finished;
  for (auto call = calls_.rbegin(); call != calls_.rend(); ++call)
    if (call->lane == lane && call->sequence == sequence) {
      call->finished_s = now();
      return;
    }
}

CallCounts FlightRecord::counts(Lane lane) const {
  const std::lock_guard lock(mutex_);
  return counts_[static_cast<int>(lane)];
}

std::string FlightRecord::last_call() const {
  const std::lock_guard lock(mutex_);
  if (calls_.empty()) return "no call yet";
  const Call& call = calls_.back();
  return fmt::format("call {}, {} of {}, {}", call.sequence, call.op,
                     format_bytes(static_cast<double>(call.bytes)),
                     call.finished_s < 0 ? "not finished" : "finished");
}

std::string FlightRecord::to_json(const std::string& reason) const {
  const std::lock_guard lock(mutex_);
  Json calls = Json::array();
  for (const Call& call : calls_)
    calls.push_back({{"sequence", call.sequence},
                     {"lane", call.lane == Lane::host ? "host" : "device"},
                     {"op", call.op},
                     {"bytes", call.bytes},
                     {"started_s", call.started_s},
                     {"finished_s", call.finished_s < 0 ? Json() : Json(call.finished_s)}});
  const Json record = {
      {"rank", rank_}, {"world_size", world_size_}, {"reason", reason}, {"now_s", now()}, {"calls", calls}};
  return record.dump(1, ' ', false, Json::error_handler_t::replace);
}

void FlightRecord::write(const std::filesystem::path& directory, const std::string& reason) const noexcept {
  if (directory.empty()) return;
  try {
    write_text_atomically(directory / fmt::format("flight.rank{}.json", rank_), to_json(reason));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "sinklora: rank %d cannot write its flight record: %s\n", rank_, error.what());
  }
}

}  // namespace sinklora
