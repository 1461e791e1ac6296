// A thread per process that knows whether the others live. All ranks send heartbeats to rank 0 and rank 0 to
// all, each with the number of calls started and finished. Rank 0 judges: a connection that closed is a
// process that died, silence one that stopped, a call in which some wait too long the fault of those that
// have not entered it. The verdict goes to all and ends every call; the flight record is written, and a
// process that a verdict does not end (it computes on, or a library hangs) is ended after the grace period.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/communicator.h"
#include "comm/flight_record.h"
#include "comm/rendezvous.h"

namespace sinklora {

class Watchdog {
 public:
  // `control` and `names` as meet() made them; `record` outlives the watchdog.
  Watchdog(int rank, std::vector<std::string> names, std::vector<Descriptor> control,
           const FlightRecord& record, const CommunicatorOptions& options);
  ~Watchdog();  // says goodbye, so that the others know that it did not die
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  void leave_record_in(const std::filesystem::path& folder);  // as Communicator has it
  void abort(const std::string& reason);                      // the verdict, unless there is one
  std::string verdict() const;                                // empty: all is well
  std::string verdict_within(double seconds) const;
  void check() const;  // throws the verdict
  // Readable once there is a verdict, for poll().
  int verdict_descriptor() const { return judged_event_.get(); }
  // Called on a verdict, at once where there is one already, perhaps twice; must not block.
  void on_verdict(std::function<void()> action);
  double beat_s() const { return beat_s_; }

 private:
  struct Peer {
    int rank;
    Descriptor socket;
    std::vector<std::byte> received;
    Clock::time_point heard = Clock::now();
    bool said_goodbye = false;
  };
  struct Standing {  // of a rank, as far as is known here
    CallCounts calls[kLanes];
    Clock::time_point moved[kLanes] = {Clock::now(), Clock::now()};  // last start out of rest, or finish
  };
  void watch();
  void listen(int milliseconds);
  void receive(Peer& peer);
  void understand(Peer& peer);
  void note(int rank, Lane lane, CallCounts calls);
  void send(Peer& peer, uint32_t kind, const std::string& text);
  void judge();
  void judge_calls(Lane lane);
  void execute();
  void decide(const std::string& reason, bool recorded = true);

  const int rank_;
  const std::vector<std::string> names_;
  const FlightRecord& record_;
  const CommunicatorOptions options_;
  const double beat_s_;
  std::vector<Peer> peers_;
  std::vector<Standing> standings_;

  mutable std::mutex mutex_;
  mutable std::condition_variable judged_;
  std::string verdict_;
  std::filesystem::path flight_directory_;
  bool recorded_ = true;  // the verdict is one to leave a record of
  bool leaving_ = false;
  std::function<void()> action_;
  Descriptor wake_event_, judged_event_;
  bool executed_ = false;
  Deadline end_of_grace_{};
  std::thread thread_;
};

}  // namespace sinklora
