#include "comm/rendezvous.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <system_error>
#include <thread>

#include "base/error.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/json.h"

namespace sinklora {
namespace {

constexpr char kMagic[8] = {'s', 'i', 'n', 'k', 'l', 'o', 'r', 'a'};
constexpr uint32_t kProtocol = 1;
constexpr double kRetry_s = 0.05;

// Said first on every connection. All machines of a run have the same byte order; the magic would differ if
// not.
struct Hello {
  char magic[8];
  uint32_t protocol;
  int32_t rank, world_size;
  uint16_t ring_port, unused;
  uint64_t nonce;
  int64_t process;
  char version[32], host[64];
};
// The answer; `length` bytes of text follow: nothing, the table of ranks, or why not.
enum class Verdict : uint32_t { wait, go, refused };
struct Answer {
  char magic[8];
  Verdict verdict;
  uint32_t length;
};

void copy_text(std::span<char> field, const std::string& text) {
  std::memcpy(field.data(), text.data(), std::min(text.size(), field.size() - 1));
}
std::string text_of(std::span<const char> field) {
  return {field.data(), static_cast<size_t>(std::find(field.begin(), field.end(), '\0') - field.begin())};
}
template <class T>
std::span<std::byte> bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

Hello hello_of(const Rendezvous& own, uint16_t ring_port) {
  Hello hello{};
  std::memcpy(hello.magic, kMagic, sizeof kMagic);
  hello.protocol = kProtocol;
  hello.rank = own.rank;
  hello.world_size = own.world_size;
  hello.ring_port = ring_port;
  hello.nonce = xxh3_64(own.nonce);
  hello.process = ::getpid();
  copy_text(hello.version, own.version);
  ::gethostname(hello.host, sizeof hello.host - 1);
  return hello;
}

void answer(const Descriptor& socket, Verdict verdict, const std::string& text, Deadline deadline) {
  Answer head{};
  std::memcpy(head.magic, kMagic, sizeof kMagic);
  head.verdict = verdict;
  head.length = static_cast<uint32_t>(text.size());
  std::vector<std::byte> bytes(sizeof head + text.size());
  std::memcpy(bytes.data(), &head, sizeof head);
  if (!text.empty()) std::memcpy(bytes.data() + sizeof head, text.data(), text.size());
  send_all(socket, bytes, deadline);
}

struct Member {
  Descriptor socket;
  std::string address;
  Hello hello{};
  size_t received = 0;  // of the hello
};

// ---- rank 0

class Host {
 public:
  Host(const Rendezvous& own, const Descriptor& listener, const Descriptor& ring, const std::string& place)
      : own_(own),
        listener_(listener),
        place_(place),
        deadline_(after(own.timeout_s)),
        members_(own.world_size) {
    members_[0].hello = hello_of(own, port_of(ring));
    members_[0].address = "127.0.0.1";
  }

  Connections gather(Endpoint& next) {
    while (came() < own_.world_size) {
      wait_for_something();
      std::string address;
      if (Descriptor socket = accept_from(listener_, Clock::now(), address))
        strangers_.push_back({std::move(socket), address});
      read_strangers();
      check_members();
    }
    Json table = Json::array();
    Connections connections;
    for (const Member& member : members_) {
      const std::string name = fmt::format("rank {} ({}, process {})", member.hello.rank,
                                           text_of(member.hello.host), member.hello.process);
      table.push_back({{"name", name}, {"address", member.address}, {"port", member.hello.ring_port}});
      connections.names.push_back(name);
    }
    for (int rank = 1; rank < own_.world_size; ++rank)
      tell(members_[rank], Verdict::go, table.dump(-1, ' ', true, Json::error_handler_t::replace));
    const Member& neighbour = members_[1 % own_.world_size];
    next = {neighbour.address, neighbour.hello.ring_port};
    for (Member& member : members_) connections.control.push_back(std::move(member.socket));
    return connections;
  }

 private:
  int came() const {
    return 1 + static_cast<int>(std::count_if(members_.begin(), members_.end(),
                                              [](const Member& member) { return bool(member.socket); }));
  }

  void wait_for_something() {
    std::vector<pollfd> waiting = {{listener_.get(), POLLIN, 0}};
    for (const Member& stranger : strangers_) waiting.push_back({stranger.socket.get(), POLLIN, 0});
    for (const Member& member : members_)
      if (member.socket) waiting.push_back({member.socket.get(), POLLIN, 0});
    ::poll(waiting.data(), waiting.size(), milliseconds_left(deadline_));
    if (Clock::now() < deadline_) return;
    std::vector<int> present = {0}, missing;
    for (int rank = 1; rank < own_.world_size; ++rank)
      (members_[rank].socket ? present : missing).push_back(rank);
    give_up(fmt::format(
        "after {} s at {} {} of {} ranks have not come: {} (here: {}); see why they did not start, or "
        "give them more time",
        own_.timeout_s, place_, missing.size(), own_.world_size, fmt::join(missing, ", "),
        fmt::join(present, ", ")));
  }

  void read_strangers() {
    for (Member& stranger : strangers_) {
      try {
        stranger.received +=
            receive_some(stranger.socket, bytes_of(stranger.hello).subspan(stranger.received));
        const size_t magic = std::min(stranger.received, sizeof kMagic);
        if (std::memcmp(stranger.hello.magic, kMagic, magic) != 0)
          stranger.socket.reset();  // a port scanner, a browser
        else if (stranger.received == sizeof stranger.hello)
          admit(stranger);
      } catch (const PeerClosed&) {
        stranger.socket.reset();
      }
    }
    std::erase_if(strangers_, [](const Member& stranger) { return !stranger.socket; });
  }

  // A process of another run is sent away and the run goes on; one of this run that does not fit ends it.
  void admit(Member& stranger) {
    const Hello& hello = stranger.hello;
    if (hello.nonce != members_[0].hello.nonce) {
      tell(stranger, Verdict::refused,
           fmt::format("rank 0 at {} belongs to another run (nonces differ): a port or file of an earlier or "
                       "foreign run; use another one",
                       place_));
      stranger.socket.reset();
      return;
    }
    const std::string who = fmt::format("rank {} on {}", hello.rank, text_of(hello.host));
    std::string complaint;
    if (hello.protocol != kProtocol || text_of(hello.version) != text_of(members_[0].hello.version))
      complaint =
          fmt::format("{} is version {} (protocol {}), rank 0 is {} ({}); run the same program on all", who,
                      text_of(hello.version), hello.protocol, own_.version, kProtocol);
    else if (hello.world_size != own_.world_size)
      complaint = fmt::format("{} says there are {} ranks, rank 0 says {}; start all with one world size",
                              who, hello.world_size, own_.world_size);
    else if (hello.rank < 0 || hello.rank >= own_.world_size)
      complaint =
          fmt::format("{} of {} ranks: ranks go from 0 to {}", who, own_.world_size, own_.world_size - 1);
    else if (hello.rank == 0 || members_[hello.rank].socket)
      complaint = fmt::format(
          "there are two processes that say they are rank {}: {} of {} and {} of {}; give each "
          "its own",
          hello.rank, members_[hello.rank].hello.process, text_of(members_[hello.rank].hello.host),
          hello.process, text_of(hello.host));
    if (!complaint.empty()) {
      tell(stranger, Verdict::refused, complaint);
      give_up(complaint);
    }
    tell(stranger, Verdict::wait, "");
    members_[hello.rank] = std::move(stranger);
  }

  // Members say nothing while they wait; one that does has gone.
  void check_members() {
    for (Member& member : members_) {
      std::byte unexpected;
      try {
        if (member.socket) receive_some(member.socket, {&unexpected, 1});
      } catch (const PeerClosed&) {
        member.socket.reset();
        give_up(fmt::format("rank {} on {} came and left again before all were there; see its output",
                            member.hello.rank, text_of(member.hello.host)));
      }
    }
  }

  void tell(const Member& member, Verdict verdict, const std::string& text) {
    try {
      answer(member.socket, verdict, text, after(1));
    } catch (const std::exception&) {  // it is gone; check_members() or the ring says so
    }
  }

  [[noreturn]] void give_up(const std::string& reason) {
    for (const Member& member : members_)
      if (member.socket) tell(member, Verdict::refused, reason);
    fail(ExitCode::communicator, "rendezvous: {}", reason);
  }

  const Rendezvous& own_;
  const Descriptor& listener_;
  const std::string place_;
  const Deadline deadline_;
  std::vector<Member> members_, strangers_;
};

// ---- the others

struct Table {
  Descriptor control;
  std::string address_of_host;
  Json ranks;
};

std::string receive_text(const Descriptor& socket, Answer& head, Deadline deadline) {
  receive_all(socket, bytes_of(head), deadline);
  if (std::memcmp(head.magic, kMagic, sizeof kMagic) != 0 || head.length > 64'000'000)
    fail(ExitCode::communicator, "what answers is not rank 0 of sinklora");
  std::string text(head.length, '\0');
  receive_all(socket, std::as_writable_bytes(std::span(text)), deadline);
  return text;
}

// Says hello and waits for the table. Empty, with `why`, where another attempt may succeed.
std::optional<Table> ask(const Rendezvous& own, const Endpoint& endpoint, uint16_t ring_port,
                         Deadline deadline, std::string& why) {
  const std::string place = fmt::format("{}:{}", endpoint.host, endpoint.port);
  Table table;
  table.control = connect_to(endpoint, std::min(deadline, after(2)), table.address_of_host, why);
  if (!table.control) return std::nullopt;
  bool admitted = false;
  try {
    Hello hello = hello_of(own, ring_port);
    send_all(table.control, bytes_of(hello), deadline);
    for (;;) {
      Answer head{};
      // Rank 0 admits at once; whoever keeps silent is somebody else.
      const std::string text =
          receive_text(table.control, head, admitted ? after(own.timeout_s + 5) : deadline);
      if (head.verdict == Verdict::refused) fail(ExitCode::communicator, "{}", text);
      admitted = true;
      if (head.verdict == Verdict::wait) continue;
      table.ranks = parse_json(text, "the table of ranks");
      return table;
    }
  } catch (const PeerClosed&) {
    if (admitted)
      fail(ExitCode::communicator, "rendezvous: rank 0 at {} died before all ranks had come; see its output",
           place);
    why = "it closes the connection without an answer";
    return std::nullopt;
  } catch (const TimedOut&) {
    fail(ExitCode::communicator,
         "rendezvous: {} accepts connections but does not answer like rank 0; is the port right, and is rank "
         "0 "
         "running or stopped?",
         place);
  } catch (const Error& error) {
    fail(ExitCode::communicator, "rendezvous at {}: {}", place, error.what());
  }
}

Endpoint parse_endpoint(const std::string& init) {
  const std::string rest = init.substr(std::strlen("tcp://"));
  const size_t colon = rest.rfind(':');
  unsigned port = 0;
  const char* end = rest.data() + rest.size();
  if (colon == std::string::npos || colon == 0 ||
      std::from_chars(rest.data() + colon + 1, end, port).ptr != end || port < 1 || port > 65535)
    fail_usage("SINKLORA_INIT={}: wanted tcp://HOST:PORT with a port from 1 to 65535, or file:///PATH", init);
  return {rest.substr(0, colon), static_cast<uint16_t>(port)};
}

// All ranks on this machine: no reason to listen to any other.
bool is_local(const Rendezvous& own) {
  if (!own.init.starts_with("tcp://")) return false;
  const std::string name = parse_endpoint(own.init).host;
  return is_loopback(name) || name == "localhost";
}

// Addresses at which other machines may reach this one, then loopback.
Json own_addresses() {
  Json addresses = Json::array();
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) == 0) {
    const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, ::freeifaddrs);
    for (const ifaddrs* one = list; one; one = one->ifa_next) {
      if (!one->ifa_addr || one->ifa_addr->sa_family != AF_INET) continue;
      char text[INET_ADDRSTRLEN];
      const auto* address = reinterpret_cast<const sockaddr_in*>(one->ifa_addr);
      if (::inet_ntop(AF_INET, &address->sin_addr, text, sizeof text) && !is_loopback(text))
        addresses.push_back(text);
    }
  }
  addresses.push_back("127.0.0.1");
  return addresses;
}

// What rank 0 wrote; empty, with `why`, where there is no file of this run.
std::vector<Endpoint> read_endpoints(const std::filesystem::path& path, const std::string& nonce,
                                     std::string& why) {
  if (!std::filesystem::exists(path)) {
    why = "rank 0 has not written it";
    return {};
  }
  std::vector<Endpoint> endpoints;
  try {
    const Json file = read_json(path, 100'000);
    if (file.at("nonce") != nonce) {
      why = fmt::format(
          "it holds the nonce '{}' of another run and this one's is '{}'; remove it, or name another file",
          file.at("nonce").get<std::string>(), nonce);
      return {};
    }
    for (const Json& address : file.at("addresses"))
      endpoints.push_back({address.get<std::string>(), file.at("port").get<uint16_t>()});
  } catch (const std::exception& error) {
    why = fmt::format("it cannot be read ({}); remove it", error.what());
    return {};
  }
  return endpoints;
}

Table find_host(const Rendezvous& own, const std::filesystem::path& file, uint16_t ring_port) {
  const Deadline deadline = after(own.timeout_s);
  std::string why;
  do {
    const std::vector<Endpoint> endpoints =
        file.empty() ? std::vector{parse_endpoint(own.init)} : read_endpoints(file, own.nonce, why);
    for (const Endpoint& endpoint : endpoints)
      if (auto table = ask(own, endpoint, ring_port, deadline, why)) return std::move(*table);
    if (own.host_listens && why == std::strerror(ECONNREFUSED))
      fail(ExitCode::communicator, "rendezvous: rank 0 has ended before rank {} met it at {}", own.rank,
           own.init);
    std::this_thread::sleep_for(std::chrono::duration<double>(kRetry_s));
  } while (Clock::now() < deadline);
  fail(ExitCode::communicator,
       "rendezvous: rank {} found no rank 0 at {} within {} s: {}; is rank 0 running, and are host, port or "
       "file "
       "the same for all?",
       own.rank, own.init, own.timeout_s, why);
}

// ---- the ring

// Everyone listens already, so connecting first and accepting then cannot wait in a circle.
void close_ring(const Rendezvous& own, const Descriptor& ring, const Endpoint& next,
                Connections& connections) {
  const Deadline deadline = after(own.timeout_s);
  const int wanted = (own.rank + own.world_size - 1) % own.world_size;
  std::string address, why;
  connections.next = connect_to(next, deadline, address, why);
  if (!connections.next)
    fail(ExitCode::communicator,
         "rendezvous: rank {} cannot reach its neighbour {} at {}:{}: {}; does a firewall "
         "keep ports between the machines closed?",
         own.rank, connections.names[(own.rank + 1) % own.world_size], next.host, next.port, why);
  try {
    Hello hello = hello_of(own, 0), other{};
    send_all(connections.next, bytes_of(hello), deadline);
    for (;;) {
      connections.previous = accept_from(ring, deadline, address);
      if (!connections.previous) throw TimedOut();
      try {
        receive_all(connections.previous, bytes_of(other), std::min(deadline, after(5)));
      } catch (const PeerClosed&) {
        continue;
      }
      if (std::memcmp(other.magic, kMagic, sizeof kMagic) == 0 && other.nonce == hello.nonce &&
          other.rank == wanted)
        return;
    }
  } catch (const std::exception&) {
    fail(ExitCode::communicator, "rendezvous: {} did not connect to its neighbour, rank {}, within {} s",
         connections.names[wanted], own.rank, own.timeout_s);
  }
}

Connections host(const Rendezvous& own, const std::filesystem::path& file, const Descriptor& ring,
                 Endpoint& next) {
  Descriptor listener(own.listen_descriptor);
  if (!listener)
    listener = listen_on(file.empty() ? parse_endpoint(own.init).port : uint16_t{0}, is_local(own));
  else if (::fcntl(listener.get(), F_SETFD, FD_CLOEXEC) != 0 ||
           ::fcntl(listener.get(), F_SETFL, O_NONBLOCK) != 0)
    fail(ExitCode::communicator, "descriptor {} is no listening socket: {}", listener.get(),
         std::strerror(errno));
  if (!file.empty())
    write_text_atomically(
        file, Json{{"nonce", own.nonce}, {"addresses", own_addresses()}, {"port", port_of(listener)}}.dump());
  const auto forget = [&] {
    std::error_code ignored;
    if (!file.empty()) std::filesystem::remove(file, ignored);
  };
  try {
    Connections connections = Host(own, listener, ring, own.init).gather(next);
    forget();
    return connections;
  } catch (...) {
    forget();
    throw;
  }
}

}  // namespace

Connections meet(const Rendezvous& own) {
  const bool by_file = own.init.starts_with("file://");
  if (own.world_size < 1 || own.rank < 0 || own.rank >= own.world_size)
    fail_usage("rank {} of {} ranks: ranks go from 0 to the world size less 1", own.rank, own.world_size);
  if (!by_file && !own.init.starts_with("tcp://"))
    fail_usage(
        "SINKLORA_INIT='{}': wanted tcp://HOST:PORT of rank 0, or file:///PATH on a file system that all see",
        own.init);
  const std::filesystem::path file = by_file ? own.init.substr(std::strlen("file://")) : "";
  const Descriptor ring = listen_on(0, is_local(own));
  Connections connections;
  Endpoint next;
  if (own.rank == 0) {
    connections = host(own, file, ring, next);
  } else {
    Table table = find_host(own, file, port_of(ring));
    for (const Json& rank : table.ranks) connections.names.push_back(rank.at("name"));
    const Json& neighbour = table.ranks.at((own.rank + 1) % own.world_size);
    next = {neighbour.at("address"), neighbour.at("port")};
    // Whom rank 0 sees on its loopback is reached where rank 0 is.
    if (is_loopback(next.host)) next.host = table.address_of_host;
    connections.control.push_back(std::move(table.control));
  }
  connections.rank = own.rank;
  connections.world_size = own.world_size;
  if (own.world_size > 1) close_ring(own, ring, next, connections);
  return connections;
}

}  // namespace sinklora
