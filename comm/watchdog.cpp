#include "comm/watchdog.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace sinklora {
namespace {

constexpr uint32_t kBeat = 1, kGoodbye = 2, kAbort = 3, kUnrecordedAbort = 4;
constexpr size_t kLongestReason = 4096;

struct Message {
  uint32_t kind, length;  // of the text that follows
  CallCounts calls[kLanes];
};

Descriptor make_event() {
  Descriptor event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event) fail(ExitCode::communicator, "cannot create an eventfd: {}", std::strerror(errno));
  return event;
}

void ring(const Descriptor& event) {
  const uint64_t one = 1;
  // It can fail only where it is set already.
  [[maybe_unused]] const ssize_t written = ::write(event.get(), &one, sizeof one);
}

}  // namespace

Watchdog::Watchdog(int rank, std::vector<std::string> names, std::vector<Descriptor> control,
                   const FlightRecord& record, const CommunicatorOptions& options)
    : rank_(rank),
      names_(std::move(names)),
      record_(record),
      options_(options),
      // Ten beats before a silence counts, and a verdict at most a tenth of a time-out late.
      beat_s_(std::min({1.0, options.timeout_s / 10, options.silence_s / 10})),
      standings_(names_.size()),
      wake_event_(make_event()),
      judged_event_(make_event()) {
  if (!(options.timeout_s > 0 && options.silence_s > 0))
    fail_usage("time-outs of {} s and {} s, wanted more than 0", options.timeout_s, options.silence_s);
  for (size_t i = 0; i < control.size(); ++i)
    if (control[i]) peers_.push_back({rank == 0 ? static_cast<int>(i) : 0, std::move(control[i]), {}});
  thread_ = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    leaving_ = true;
  }
  ring(wake_event_);
  thread_.join();
}

void Watchdog::leave_record_in(const std::filesystem::path& folder) {
  const std::lock_guard lock(mutex_);
  flight_directory_ = folder;
}

void Watchdog::abort(const std::string& reason) {
  bool recorded = false;
  {
    const std::lock_guard lock(mutex_);
    recorded = !flight_directory_.empty();
  }
  decide(fmt::format("{} aborted: {}", names_[rank_], reason), recorded);
}

std::string Watchdog::verdict() const {
  const std::lock_guard lock(mutex_);
  return verdict_;
}

std::string Watchdog::verdict_within(double seconds) const {
  std::unique_lock lock(mutex_);
  judged_.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return !verdict_.empty(); });
  return verdict_;
}

void Watchdog::check() const {
  const std::lock_guard lock(mutex_);
  if (!verdict_.empty()) throw Error(ExitCode::communicator, verdict_);
}

void Watchdog::on_verdict(std::function<void()> action) {
  {
    const std::lock_guard lock(mutex_);
    action_ = action;
    if (verdict_.empty()) return;
  }
  if (action) action();
}

void Watchdog::decide(const std::string& reason, bool recorded) {
  {
    const std::lock_guard lock(mutex_);
    if (!verdict_.empty()) return;
    verdict_ = reason.substr(0, kLongestReason);
    recorded_ = recorded;
  }
  judged_.notify_all();
  ring(judged_event_);
  ring(wake_event_);
}

void Watchdog::watch() {
  Deadline next_beat = Clock::now();
  for (;;) {
    listen(milliseconds_left(next_beat));
    if (!verdict().empty()) execute();
    bool leaving = false;
    {
      const std::lock_guard lock(mutex_);
      leaving = leaving_;
    }
    if (leaving) {
      if (!executed_)
        for (Peer& peer : peers_) send(peer, kGoodbye, "");
      return;
    }
    if (Clock::now() < next_beat) continue;
    next_beat = after(beat_s_);
    for (const Lane lane : {Lane::host, Lane::device}) note(rank_, lane, record_.counts(lane));
    for (Peer& peer : peers_) send(peer, kBeat, "");
    judge();
    if (executed_ && options_.grace_s > 0 && Clock::now() >= end_of_grace_) {
      std::fprintf(stderr, "sinklora: rank %d still runs %g s after the run failed and ends now: %s\n", rank_,
                   options_.grace_s, verdict().c_str());
      ::_exit(static_cast<int>(ExitCode::communicator));
    }
  }
}

void Watchdog::listen(int milliseconds) {
  std::vector<pollfd> waiting = {{wake_event_.get(), POLLIN, 0}};
  for (const Peer& peer : peers_) waiting.push_back({peer.socket.get(), POLLIN, 0});  // -1 is ignored
  ::poll(waiting.data(), waiting.size(), milliseconds);
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = ::read(wake_event_.get(), &count, sizeof count);
  for (Peer& peer : peers_) receive(peer);
}

void Watchdog::receive(Peer& peer) {
  if (!peer.socket) return;
  try {
    std::byte piece[4096];
    while (const size_t got = receive_some(peer.socket, piece)) {
      peer.received.insert(peer.received.end(), piece, piece + got);
      peer.heard = Clock::now();
      understand(peer);
    }
  } catch (const PeerClosed&) {
    peer.socket.reset();
    if (!peer.said_goodbye)
      decide(
          fmt::format("{} died: its connection closed while this rank was at {}; see that rank's own output",
                      names_[peer.rank], record_.last_call()));
  }
}

void Watchdog::understand(Peer& peer) {
  std::vector<std::byte>& bytes = peer.received;
  size_t used = 0;
  Message message;
  while (bytes.size() - used >= sizeof message) {
    std::memcpy(&message, bytes.data() + used, sizeof message);
    if (message.length > kLongestReason || message.kind < kBeat || message.kind > kUnrecordedAbort)
      throw PeerClosed();
    if (bytes.size() - used < sizeof message + message.length) break;
    const std::string text(reinterpret_cast<const char*>(bytes.data()) + used + sizeof message,
                           message.length);
    used += sizeof message + message.length;
    if (message.kind >= kAbort) decide(text, message.kind == kAbort);
    if (message.kind == kGoodbye) peer.said_goodbye = true;
    for (const Lane lane : {Lane::host, Lane::device})
      note(peer.rank, lane, message.calls[static_cast<int>(lane)]);
  }
  bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(used));
}

void Watchdog::note(int rank, Lane lane, CallCounts calls) {
  Standing& standing = standings_[rank];
  CallCounts& known = standing.calls[static_cast<int>(lane)];
  const bool was_at_rest = known.started == known.finished;
  if (known.finished != calls.finished || (was_at_rest && known.started != calls.started))
    standing.moved[static_cast<int>(lane)] = Clock::now();
  known = calls;
}

void Watchdog::send(Peer& peer, uint32_t kind, const std::string& text) {
  if (!peer.socket) return;
  Message message{kind, static_cast<uint32_t>(text.size()), {}};
  for (const Lane lane : {Lane::host, Lane::device})
    message.calls[static_cast<int>(lane)] = record_.counts(lane);
  std::vector<std::byte> bytes(sizeof message + text.size());
  std::memcpy(bytes.data(), &message, sizeof message);
  if (!text.empty()) std::memcpy(bytes.data() + sizeof message, text.data(), text.size());
  try {
    // A peer that has not read for so long that the kernel's buffer is full has stopped; a message less does
    // not matter to it, but half of one must not be followed by another.
    const size_t sent = send_some(peer.socket, bytes);
    if (sent > 0 && sent < bytes.size())
      send_all(peer.socket, std::span(bytes).subspan(sent), after(beat_s_));
  } catch (const std::exception&) {  // receive() finds out what became of it
  }
}

void Watchdog::judge() {
  if (executed_) return;
  for (const Peer& peer : peers_)
    if (peer.socket && !peer.said_goodbye &&
        Clock::now() - peer.heard > std::chrono::duration<double>(options_.silence_s))
      decide(fmt::format(
          "{} has been silent for {} s: it is stopped, or its machine or network is gone; this rank was "
          "at {}",
          names_[peer.rank], options_.silence_s, record_.last_call()));
  if (rank_ != 0) return;
  judge_calls(Lane::host);
  judge_calls(Lane::device);
}

// Who keeps whom waiting; only rank 0 knows all standings.
void Watchdog::judge_calls(Lane lane) {
  const int l = static_cast<int>(lane);
  for (size_t rank = 0; rank < standings_.size(); ++rank) {
    const CallCounts& waiting = standings_[rank].calls[l];
    if (waiting.started == waiting.finished) continue;
    const uint64_t call = waiting.finished + 1;
    const bool too_long =
        Clock::now() - standings_[rank].moved[l] > std::chrono::duration<double>(options_.timeout_s);
    std::vector<std::string> late, gone;
    for (const Peer& peer : peers_) {
      if (standings_[peer.rank].calls[l].started >= call) continue;
      (peer.said_goodbye ? gone : late).push_back(names_[peer.rank]);
    }
    if (standings_[0].calls[l].started < call) late.insert(late.begin(), names_[0]);
    if (!gone.empty())
      return decide(
          fmt::format("{} left before call {}, for which {} waits; all ranks must make the same calls",
                      fmt::join(gone, " and "), call, names_[rank]));
    if (too_long && late.empty())
      return decide(fmt::format(
          "{} has waited {} s in call {} though all ranks came to it: the network is gone, or too "
          "slow for the time-out",
          names_[rank], options_.timeout_s, call));
    if (too_long)
      return decide(
          fmt::format("{} did not come to call {} within {} s, where {} waits; the rank is slow or hangs",
                      fmt::join(late, " and "), call, options_.timeout_s, names_[rank]));
  }
}

void Watchdog::execute() {
  if (std::exchange(executed_, true)) return;
  const std::string reason = verdict();
  std::function<void()> action;
  std::filesystem::path folder;
  uint32_t kind = kUnrecordedAbort;
  {
    const std::lock_guard lock(mutex_);
    action = action_;
    if (recorded_) folder = flight_directory_, kind = kAbort;
  }
  for (Peer& peer : peers_) send(peer, kind, reason);
  if (action) action();
  end_of_grace_ = after(options_.grace_s);
  record_.write(folder, reason);
}

}  // namespace sinklora
