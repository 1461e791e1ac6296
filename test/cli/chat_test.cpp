// sinklora chat as a person meets it, at a terminal, and as a script does, through a pipe.
#include <doctest/doctest.h>
#include <poll.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>

#include "base/files.h"
#include "base/json.h"
#include "test/run_program.h"
#include "test/temporary.h"

using namespace sinklora;
using sinklora::test::TemporaryDirectory;

namespace {

const std::string kModel = SINKLORA_SOURCE_DIR "/assets/tiny-llama";

// The program at a terminal of its own. It does not outlive this object.
class TerminalSession {
 public:
  explicit TerminalSession(const std::string& arguments) {
    const std::string command = "exec '" SINKLORA_PROGRAM "' " + arguments;
    process_ = ::forkpty(&terminal_, nullptr, nullptr, nullptr);
    if (process_ < 0) throw std::runtime_error("cannot open a terminal");
    if (process_ > 0) return;
    ::execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    ::_exit(127);
  }
  ~TerminalSession() {
    if (process_ > 0) ::kill(process_, SIGKILL), ::waitpid(process_, nullptr, 0);
    ::close(terminal_);
  }
  TerminalSession(const TerminalSession&) = delete;
  TerminalSession& operator=(const TerminalSession&) = delete;

  void type(const std::string& keys) {
    REQUIRE(::write(terminal_, keys.data(), keys.size()) == static_cast<ssize_t>(keys.size()));
  }
  // What the terminal shows up to and including `wanted`.
  std::string until(const std::string& wanted) {
    for (size_t found; (found = shown_.find(wanted)) == std::string::npos;)
      REQUIRE_MESSAGE(more(), "waiting for \"", wanted, "\", the terminal shows: ", shown_);
    const size_t end = shown_.find(wanted) + wanted.size();
    std::string text = shown_.substr(0, end);
    shown_.erase(0, end);
    return text;
  }
  int exit_code() {
    while (more()) {
    }
    int status = 0;
    ::waitpid(process_, &status, 0);
    process_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  bool more() {
    pollfd ready{terminal_, POLLIN, 0};
    if (::poll(&ready, 1, 60'000) <= 0) return false;
    char bytes[4096];
    const ssize_t got = ::read(terminal_, bytes, sizeof bytes);
    if (got <= 0) return false;
    shown_.append(bytes, static_cast<size_t>(got));
    return true;
  }

  pid_t process_ = 0;
  int terminal_ = -1;
  std::string shown_;
};

}  // namespace

TEST_CASE("chat at a terminal: messages, commands, Ctrl-C stops a reply only, Ctrl-D ends") {
  const TemporaryDirectory folder;
  const std::string file = (folder / "talk.json").string();
  // The tiny model knows no end of a reply, and talks until it is stopped.
  TerminalSession chat("chat --model '" + kModel +
                       "' --template alpaca --context 30k --max-new-tokens 25k --temperature 1 --seed 1");
  chat.until("> ");
  chat.type("/help\n");
  CHECK(chat.until("Ctrl-C stops a reply").find("/save FILE") != std::string::npos);
  chat.until("> ");
  chat.type("half a message\x03");
  chat.until("Ctrl-D ends");
  chat.until("> ");
  chat.type("Hello\n");
  chat.until("Hello\r\n");  // the echo
  const auto begin = std::chrono::steady_clock::now();
  std::string reply = chat.until("e");
  chat.type("\x03");
  reply += chat.until("[interrupted]");
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(30));
  chat.until("> ");
  chat.type("/cache\n");
  CHECK(chat.until(" bytes").find(" of 30000 tokens, ") != std::string::npos);
  chat.until("> ");
  chat.type("/save " + file + "\n");
  chat.until("2 messages in ");
  chat.until("> ");
  const Json saved = read_json(file);
  CHECK(saved.at("messages").at(0) == Json{{"role", "user"}, {"content", "Hello"}});
  CHECK(saved.at("messages").at(1).at("role") == "assistant");
  CHECK(!saved.at("messages").at(1).at("content").get<std::string>().empty());
  chat.type("/reset\n");
  chat.until("> ");
  chat.type("/cache\n");
  chat.until("\n0 of 30000 tokens");
  chat.until("> ");
  chat.type("/nonsense\n");
  chat.until("no command /nonsense");
  chat.type("/save /no/such/folder/x\n");
  chat.until("/no/such/folder/x");
  chat.until("cannot create");  // and it goes on
  chat.until("> ");
  chat.type("\x04");
  CHECK(chat.exit_code() == 0);
}

TEST_CASE("chat through a pipe: a line in, a reply out, and the same again after /reset") {
  const TemporaryDirectory folder;
  const std::string talk = (folder / "talk").string(), said = (folder / "said").string();
  const auto chat = [&](const std::string& lines, const std::string& options) {
    write_text_atomically(talk, lines);
    return test::run_program("chat --model '" + kModel + "' --max-new-tokens 20 --temperature 1 " + options,
                             talk);
  };
  const auto twice = chat("Hello\n/reset\nHello", "--template llama2 --seed 4");
  CHECK(twice.exit_code == 0);
  const size_t half = twice.output.size() / 2;
  CHECK(twice.output.find("note:") == std::string::npos);
  CHECK(twice.output.substr(0, half) == twice.output.substr(half));
  CHECK(twice.output.find("> ") == std::string::npos);

  write_text_atomically(folder / "document", "The document.");
  const auto saved =
      chat("/read " + (folder / "document").string() + "\nWhat? </s>\n/save " + said + "\n/quit\nmore\n",
           "--template chatml");
  CHECK(saved.exit_code == 0);
  CHECK(saved.output.find("note: the vocabulary has no <|im_start|>") == 0);
  const Json messages = read_json(said).at("messages");
  CHECK(messages.size() == 2);
  CHECK(messages.at(0).at("content") == "The document.\nWhat? </s>");

  const auto exists = chat("/save " + said + "\n", "--template llama2");
  CHECK(exists.output == said + " exists; /save takes a new name\n");
  CHECK(read_json(said).at("messages") == messages);

  const auto too_long = chat(std::string(300, 'x') + "\n", "--template llama2 --context 200");
  CHECK(too_long.exit_code == 3);
  CHECK(too_long.output.find("--context") != std::string::npos);
  const auto unknown = chat("Hello\n", "");
  CHECK(unknown.exit_code == 2);
  CHECK(unknown.output.find("--template") != std::string::npos);
}
