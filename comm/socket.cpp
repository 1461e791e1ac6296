#include "comm/socket.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/error.h"

namespace sinklora {
namespace {

void no_delay(int socket) {
  const int on = 1;
  if (::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0)
    fail(ExitCode::communicator, "cannot set TCP_NODELAY: {}", std::strerror(errno));
}

std::string dotted(const sockaddr_in& address) {
  char text[INET_ADDRSTRLEN] = "";
  ::inet_ntop(AF_INET, &address.sin_addr, text, sizeof text);
  return text;
}

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

void wait_for(int socket, short events, Deadline deadline) {
  pollfd one{socket, events, 0};
  const int ready = ::poll(&one, 1, milliseconds_left(deadline));
  if (ready < 0 && errno != EINTR)
    fail(ExitCode::communicator, "cannot wait for a socket: {}", std::strerror(errno));
  if (ready == 0 && Clock::now() >= deadline) throw TimedOut();
}

}  // namespace

Deadline after(double seconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

int milliseconds_left(Deadline deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1'000'000'000));
}

bool is_loopback(const std::string& address) { return address.starts_with("127."); }

Descriptor listen_on(uint16_t port, bool loopback) {
  Descriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const auto refuse = [&](const char* what) {
    fail(ExitCode::communicator, "cannot {} on port {}: {}; choose another port", what, port,
         std::strerror(errno));
  };
  if (!listener) refuse("open a socket");
  // So that a run can start again at once: connections of the last one linger in the kernel.
  const int on = 1;
  if (::setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0) refuse("set SO_REUSEADDR");
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(loopback ? INADDR_LOOPBACK : INADDR_ANY);
  if (::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) refuse("listen");
  if (::listen(listener.get(), 1024) != 0) refuse("listen");
  return listener;
}

uint16_t port_of(const Descriptor& listener) {
  sockaddr_in address{};
  socklen_t size = sizeof address;
  if (::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0)
    fail(ExitCode::communicator, "descriptor {} is no listening socket: {}", listener.get(),
         std::strerror(errno));
  return ntohs(address.sin_port);
}

Descriptor accept_from(const Descriptor& listener, Deadline deadline, std::string& address) {
  for (;;) {
    sockaddr_in peer{};
    socklen_t size = sizeof peer;
    Descriptor socket(
        ::accept4(listener.get(), reinterpret_cast<sockaddr*>(&peer), &size, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (socket) {
      no_delay(socket.get());
      address = dotted(peer);
      return socket;
    }
    if (!would_block() && errno != ECONNABORTED)
      fail(ExitCode::communicator, "cannot accept a connection: {}", std::strerror(errno));
    try {
      wait_for(listener.get(), POLLIN, deadline);
    } catch (const TimedOut&) {
      return {};
    }
  }
}

Descriptor connect_to(const Endpoint& endpoint, Deadline deadline, std::string& address, std::string& why) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  if (const int code = ::getaddrinfo(endpoint.host.c_str(), nullptr, &hints, &found); code != 0) {
    why = ::gai_strerror(code);
    return {};
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> list(found, ::freeaddrinfo);
  for (const addrinfo* one = found; one; one = one->ai_next) {
    sockaddr_in target{};
    std::memcpy(&target, one->ai_addr, sizeof target);
    target.sin_port = htons(endpoint.port);
    Descriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!socket) fail(ExitCode::communicator, "cannot open a socket: {}", std::strerror(errno));
    int error = 0;
    if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&target), sizeof target) != 0) error = errno;
    if (error == EINPROGRESS || error == EINTR) {
      pollfd waiting{socket.get(), POLLOUT, 0};
      if (::poll(&waiting, 1, milliseconds_left(deadline)) <= 0) {
        why = "no answer";
        continue;
      }
      socklen_t size = sizeof error;
      if (::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
    }
    // A free port that nobody listens on may be given to this very socket, which is then connected to itself.
    sockaddr_in own{};
    socklen_t own_size = sizeof own;
    if (error == 0 && ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&own), &own_size) == 0 &&
        own.sin_port == target.sin_port && own.sin_addr.s_addr == target.sin_addr.s_addr)
      error = ECONNREFUSED;
    if (error == 0) {
      no_delay(socket.get());
      address = dotted(target);
      return socket;
    }
    why = std::strerror(error);
  }
  return {};
}

size_t send_some(const Descriptor& socket, std::span<const std::byte> bytes) {
  if (bytes.empty()) return 0;
  const ssize_t sent = ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  if (sent >= 0) return static_cast<size_t>(sent);
  if (would_block()) return 0;
  throw PeerClosed();  // EPIPE, ECONNRESET, and a network that is gone all end the same way
}

size_t receive_some(const Descriptor& socket, std::span<std::byte> bytes) {
  if (bytes.empty()) return 0;
  const ssize_t got = ::recv(socket.get(), bytes.data(), bytes.size(), 0);
  if (got > 0) return static_cast<size_t>(got);
  if (got < 0 && would_block()) return 0;
  throw PeerClosed();
}

void send_all(const Descriptor& socket, std::span<const std::byte> bytes, Deadline deadline) {
  while (!bytes.empty()) {
    const size_t sent = send_some(socket, bytes);
    bytes = bytes.subspan(sent);
    if (sent == 0) wait_for(socket.get(), POLLOUT, deadline);
  }
}

void receive_all(const Descriptor& socket, std::span<std::byte> bytes, Deadline deadline) {
  while (!bytes.empty()) {
    const size_t got = receive_some(socket, bytes);
    bytes = bytes.subspan(got);
    if (got == 0) wait_for(socket.get(), POLLIN, deadline);
  }
}

}  // namespace sinklora
