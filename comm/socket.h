// TCP sockets (IPv4) that never block for longer than a deadline and never outlive their owner.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/descriptor.h"

namespace sinklora {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;
Deadline after(double seconds);
int milliseconds_left(Deadline deadline);  // for poll(): rounded up, 0 when it has passed

struct Endpoint {
  std::string host;  // name or dotted address
  uint16_t port = 0;
};

// What a peer's socket answers instead of bytes.
class PeerClosed : public std::exception {
 public:
  const char* what() const noexcept override { return "the peer closed its connection"; }
};
class TimedOut : public std::exception {
 public:
  const char* what() const noexcept override { return "the time-out passed"; }
};

// Port 0: any free one. Only this machine can connect to a loopback listener.
Descriptor listen_on(uint16_t port, bool loopback);
uint16_t port_of(const Descriptor& listener);
// Empty when nobody came before the deadline. `address` receives the peer's dotted address.
Descriptor accept_from(const Descriptor& listener, Deadline deadline, std::string& address);
// One attempt. Empty when it did not succeed, with the reason in `why`. `address`: the dotted address it
// reached.
Descriptor connect_to(const Endpoint& endpoint, Deadline deadline, std::string& address, std::string& why);

// All of it, or PeerClosed, or TimedOut.
void send_all(const Descriptor& socket, std::span<const std::byte> bytes, Deadline deadline);
void receive_all(const Descriptor& socket, std::span<std::byte> bytes, Deadline deadline);
// As much as goes at once; PeerClosed where the connection is gone.
size_t send_some(const Descriptor& socket, std::span<const std::byte> bytes);
size_t receive_some(const Descriptor& socket, std::span<std::byte> bytes);

bool is_loopback(const std::string& address);

}  // namespace sinklora
