#include "infer/chat_console.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/files.h"

namespace sinklora {
namespace {

constexpr int kPollMilliseconds = 50;
constexpr int64_t kMostFileBytes = int64_t{1} << 30;
constexpr std::string_view kHelp =
    "/help       this list\n"
    "/reset      forget the conversation\n"
    "/read FILE  put the text of FILE in front of the next message\n"
    "/save FILE  write the conversation as a line of JSON, which `tokenize --format chat` reads\n"
    "/cache      what the model remembers, and its memory\n"
    "/quit       end, as Ctrl-D does; Ctrl-C stops a reply\n"
    "A message may begin with / behind a space.\n";

// A signal handler may only set a flag.
volatile std::sig_atomic_t interrupted = 0;
void note_interrupt(int) { interrupted = 1; }

// Lines of a descriptor. Unlike the C library's, they can be interrupted. The signal may come just before a
// read, or to another thread, and then no read ends because of it: so the flag is looked at now and then.
class LineReader {
 public:
  enum class Outcome { line, interrupted, end };
  explicit LineReader(int descriptor) : descriptor_(descriptor) {}

  Outcome next(std::string& line) {
    for (size_t searched = 0;;) {
      if (const size_t end = buffer_.find('\n', searched); end != std::string::npos) {
        line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return Outcome::line;
      }
      searched = buffer_.size();
      if (interrupted) {
        buffer_.clear();
        return Outcome::interrupted;
      }
      pollfd ready{descriptor_, POLLIN, 0};
      if (::poll(&ready, 1, kPollMilliseconds) <= 0) continue;
      char bytes[4096];
      const ssize_t got = ::read(descriptor_, bytes, sizeof bytes);
      if (got > 0) {
        buffer_.append(bytes, static_cast<size_t>(got));
      } else if (got < 0 && errno == EINTR) {
        continue;
      } else if (got < 0 && errno != EIO) {  // EIO: the terminal is gone
        fail_input("standard input: {}; run chat in a terminal or with a pipe", std::strerror(errno));
      } else {
        line.swap(buffer_);  // the last line may lack its end
        buffer_.clear();
        return line.empty() ? Outcome::end : Outcome::line;
      }
    }
  }

 private:
  int descriptor_;
  std::string buffer_;
};

class Console {
 public:
  Console(Chat& chat, int input, std::FILE* replies, std::FILE* notes)
      : chat_(chat), lines_(input), terminal_(::isatty(input) == 1), replies_(replies), notes_(notes) {}

  void run() {
    std::string line;
    note("{}", terminal_ ? "/help lists the commands, Ctrl-D ends\n" : "");
    while (going_) {
      InterruptGuard::clear();
      if (terminal_) note("> ");
      const LineReader::Outcome outcome = lines_.next(line);
      if (outcome == LineReader::Outcome::end) {
        if (terminal_) note("\n");
        return;
      }
      if (outcome == LineReader::Outcome::interrupted) {
        note("\nCtrl-D ends\n");
        continue;
      }
      if (!line.empty() && line.back() == '\r') line.pop_back();
      try {
        if (line.starts_with('/'))
          command(line);
        else if (!line.empty())
          reply(line);
      } catch (const Error& error) {
        if (!terminal_) throw;
        note("{}\n", error.what());
      }
    }
  }

 private:
  template <class... Args>
  void note(fmt::format_string<Args...> format, Args&&... args) {
    fmt::print(notes_, format, std::forward<Args>(args)...);
    std::fflush(notes_);
  }

  void reply(const std::string& line) {
    const Reply reply = chat_.say(read_ + line, [&](std::string_view text) {
      fmt::print(replies_, "{}", text);
      std::fflush(replies_);
    });
    read_.clear();
    fmt::print(replies_, "\n");
    std::fflush(replies_);
    if (reply.end != ReplyEnd::eos && reply.end != ReplyEnd::stop_string) note("[{}]\n", describe(reply.end));
  }

  void command(const std::string& line) {
    const size_t space = std::min(line.find(' '), line.size());
    const std::string name = line.substr(0, space), file = line.substr(std::min(space + 1, line.size()));
    const bool wants_file = name == "/save" || name == "/read";
    if (wants_file == file.empty())
      return note("{}: {}\n", name, wants_file ? "name a file" : "takes nothing");
    if (name == "/help") {
      note("{}", kHelp);
    } else if (name == "/reset") {
      chat_.reset();
      read_.clear();
    } else if (name == "/read") {
      read_ += read_text(file, kMostFileBytes) + "\n";
      note("{} bytes stand in front of the next message\n", read_.size());
    } else if (name == "/save") {
      save(file);
    } else if (name == "/cache") {
      const Session& session = chat_.session();
      note("{} of {} tokens, {} bytes\n", session.length(), session.context(), session.cache_bytes());
    } else if (name == "/quit") {
      going_ = false;
    } else {
      note("there is no command {}; /help lists them\n", name);
    }
  }

  void save(const std::filesystem::path& file) {
    if (std::filesystem::exists(file) && file != saved_)
      return note("{} exists; /save takes a new name\n", file.string());
    write_text_atomically(file, chat_.to_json());
    saved_ = file;
    note("{} messages in {}\n", chat_.messages().size(), file.string());
  }

  Chat& chat_;
  LineReader lines_;
  bool terminal_, going_ = true;
  std::FILE *replies_, *notes_;
  std::string read_;             // what /read has put in front of the next message
  std::filesystem::path saved_;  // by this session, which may write it again
};

}  // namespace

InterruptGuard::InterruptGuard() {
  clear();
  struct sigaction action {};
  action.sa_handler = note_interrupt;
  action.sa_flags = SA_RESTART;  // a reply that is being written is not cut
  if (::sigaction(SIGINT, &action, &before_) != 0) fail_internal("sigaction: {}", std::strerror(errno));
}
InterruptGuard::~InterruptGuard() { ::sigaction(SIGINT, &before_, nullptr); }
const volatile std::sig_atomic_t* InterruptGuard::flag() { return &interrupted; }
void InterruptGuard::clear() { interrupted = 0; }

void run_chat(Chat& chat, int input, std::FILE* replies, std::FILE* notes) {
  Console(chat, input, replies, notes).run();
}

}  // namespace sinklora
