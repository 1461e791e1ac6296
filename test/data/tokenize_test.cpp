// The tokenize run: what it makes of records, and that neither threads, crashes nor full disks change a byte
// of it.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "base/random.h"
#include "data/dataset.h"
#include "data/manifest.h"
#include "data/tokenize.h"
#include "test/data/fixtures.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;
namespace fs = std::filesystem;

namespace {

constexpr int32_t kBos = 512, kEos = 513;  // of PairTokenizer

EncodedDocument encode(const std::string& json, EncodeOptions options,
                       const Tokenizer& tokenizer = PairTokenizer()) {
  if (options.context == 0) options.context = 100;
  Record record;
  record.is_json = options.format != "text";
  record.bytes = json;
  record.place = "f.json: record 3";
  return DocumentEncoder(tokenizer, options).encode(record);
}

// "<s>", "</s>" and letters; scored tokens in upper case, for letters.
std::string shown(const EncodedDocument& document) {
  std::string text;
  for (size_t i = 0; i < document.ids.size(); ++i) {
    const int32_t id = document.ids[i];
    if (id == kBos)
      text += "<s>";
    else if (id == kEos)
      text += document.scored[i] ? "</S>" : "</s>";
    else
      for (int k = 0; k < 1 + id / 256; ++k)
        text += static_cast<char>(document.scored[i] ? std::toupper(id % 256) : id % 256);
  }
  return text;
}

std::string words(uint64_t seed, int64_t size) {
  const RandomStream random(seed, "words");
  std::string text;
  for (uint64_t i = 0; static_cast<int64_t>(text.size()) < size; ++i)
    text += static_cast<char>(random.below(i, 6) == 0 ? ' '
                                                      : 'a' + static_cast<char>(random.below(i, 1000) % 26));
  return text;
}

std::string records(int count) {
  const RandomStream random(4, "records");
  Json list = Json::array();
  for (int i = 0; i < count; ++i) {
    const auto draw = static_cast<uint64_t>(i);
    list.push_back({{"instruction", words(draw, 5 + static_cast<int64_t>(random.below(draw, 60)))},
                    {"input", i % 3 == 0 ? Json(nullptr) : Json("")},
                    {"output", words(draw + 1000, static_cast<int64_t>(random.below(draw + 77, 40)))}});
  }
  return list.dump();
}

// Runs the program; its exit code, or minus the signal that ended it. `file_limit`: bytes a file may have.
int run_program(std::vector<std::string> arguments, rlim_t file_limit = RLIM_INFINITY,
                const std::function<bool()>& kill_when = {}) {
  arguments.insert(arguments.begin(), SINKLORA_PROGRAM);
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    const int null = ::open("/dev/null", O_WRONLY);
    ::dup2(null, 1);
    ::dup2(null, 2);
    const rlimit limit{file_limit, file_limit};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::signal(SIGXFSZ, SIG_IGN);  // writing beyond the limit then fails as it does on a full disk
    ::execv(SINKLORA_PROGRAM, pointers.data());
    ::_exit(99);
  }
  int status = 0;
  while (kill_when && ::waitpid(child, &status, WNOHANG) == 0) {
    if (kill_when()) {
      ::kill(child, SIGKILL);
      ::waitpid(child, &status, 0);
      break;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  if (!kill_when) ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

struct Job {
  TokenizeOptions options;
  std::string name;
};

// One run of each format and packing over a few inputs.
std::vector<Job> jobs(const TemporaryDirectory& folder) {
  write_file(folder / "a.txt", words(1, 3000));
  write_file(folder / "b.txt", "short");
  write_file(folder / "empty.txt", "");
  std::string lines;
  for (uint64_t i = 0; i < 40; ++i)
    lines += Json{{"text", words(i, static_cast<int64_t>(20 + 7 * i))}}.dump() + "\n";
  write_file(folder / "c.jsonl", lines);
  write_file(folder / "d.json", records(60));
  std::vector<Job> list;
  for (const Packing packing : {Packing::stream, Packing::none})
    list.push_back({{{folder / "a.txt", folder / "b.txt", folder / "empty.txt", folder / "c.jsonl"},
                     {},
                     {"text", "none", false, false, 64},
                     packing,
                     5,
                     1,
                     false},
                    "text"});
  for (const Packing packing : {Packing::whole, Packing::none})
    for (const bool drop : {false, true})
      list.push_back(
          {{{folder / "d.json"}, {}, {"alpaca", "llama2", false, drop, 70}, packing, 4, 1, false}, "alpaca"});
  return list;
}

}  // namespace

TEST_CASE("instructions: the prompt is masked, null is empty, and the seam is cut or LongLoRA's") {
  const EncodeOptions apart{"alpaca", "none", false, false, 100},
      together{"alpaca", "none", true, false, 100};
  CHECK(shown(encode(R"({"instruction":"xa","output":"ab"})", apart)) == "<s>xaAB</S>");
  CHECK(encode(R"({"instruction":"xa","output":"ab"})", apart).ids ==
        std::vector<int32_t>{kBos, 'x', 'a', 'a', 'b', kEos});
  // In one go "aa" merges; the prompt alone has two tokens, so the merged one is masked too.
  CHECK(encode(R"({"instruction":"xa","output":"ab"})", together).ids ==
        std::vector<int32_t>{kBos, 'x', 256 + 'a', 'b', kEos});
  CHECK(shown(encode(R"({"instruction":"xa","output":"ab"})", together)) == "<s>xaaB</S>");
  CHECK(shown(encode(R"({"instruction":"xy","output":"ab","file":"f","input":null})", together)) ==
        "<s>xyAB</S>");
  CHECK(shown(encode(R"({"instruction":"p","output":"q","input":null})",
                     {"alpaca", "llama2", false, false, 100})) == "<s>[INST]p[/INST]Q</S>");
  CHECK(shown(encode(R"({"instruction":"p","output":null,"input":"i"})", apart)) == "<s>p\ni</S>");
  const EncodeOptions alpaca{"alpaca", "alpaca", false, false, 1000};
  CHECK(shown(encode(R"({"instruction":"p","output":"q","input":""})", alpaca)) ==
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\np\n\n### Response:Q</S>");
  // What a record spells is never a special token; Hugging Face's tokenizer, and so LongLoRA, makes it one.
  for (const EncodeOptions& options : {apart, together}) {
    const EncodedDocument spelled = encode(R"({"instruction":"x<s>","output":"a</s>b"})", options);
    CHECK(std::count(spelled.ids.begin(), spelled.ids.end(), kBos) == 1);
    CHECK(std::count(spelled.ids.begin(), spelled.ids.end(), kEos) == 1);
    CHECK(spelled.ids.size() == 12);
  }
}

TEST_CASE("instructions: with sentencepiece the ids are LongLoRA's where nothing merges across the seam") {
  const auto tokenizer = open_tokenizer(golden("tokenizer/sentencepiece.model"));
  const std::string record = R"({"instruction":"the old house","output":"it was sold"})";
  const EncodedDocument ours = encode(record, {"alpaca", "llama2", false, false, 100}, *tokenizer),
                        theirs = encode(record, {"alpaca", "llama2", true, false, 100}, *tokenizer);
  CHECK(ours.ids == theirs.ids);
  CHECK(ours.scored == theirs.scored);
  CHECK(tokenizer->decode(ours.ids) == "[INST]the old house[/INST]it was sold");
}

TEST_CASE("what is longer than the context is cut or dropped, and what would score nothing is dropped") {
  const char* record = R"({"instruction":"abc","output":"defg"})";
  CHECK(shown(encode(record, {"alpaca", "none", false, false, 9})) == "<s>abcDEFG</S>");
  const EncodedDocument cut = encode(record, {"alpaca", "none", false, false, 6});
  CHECK(shown(cut) == "<s>abcDE");
  CHECK(cut.truncated);
  CHECK(encode(record, {"alpaca", "none", false, true, 6}).dropped);
  const EncodedDocument prompt_only = encode(record, {"alpaca", "none", false, false, 4});
  CHECK(prompt_only.dropped);
  CHECK(!prompt_only.truncated);
  CHECK(encode("", {"text", "none", false, false, 9}).dropped);
  CHECK(shown(encode("abcdefghijkl", {"text", "none", false, false, 4})) == "<s>ABCDEFGHIJKL</S>");
}

TEST_CASE("chats: the assistant's turns are scored") {
  const EncodeOptions chat{"chat", "llama2", false, false, 1000};
  CHECK(shown(encode(R"({"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},
    {"role":"assistant","content":"v"},{"role":"user","content":"w"},{"role":"assistant","content":"x"}]})",
                     chat)) ==
        "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nu [/INST] V </S><s>[INST] w [/INST] X </S>");
  CHECK_THROWS_WITH_AS(encode(R"({"messages":[{"role":"assistant","content":"x"}]})", chat),
                       doctest::Contains("record 3"), Error);
}

TEST_CASE("chats: calls of tools, and what else is no text, are refused with a remedy") {
  const EncodeOptions chat{"chat", "llama2", false, false, 1000};
  const auto refused = [&](const std::string& message, const char* said) {
    const std::string record = R"({"messages":[{"role":"user","content":"u"},)" + message + "]}";
    CHECK_THROWS_WITH_AS(encode(record, chat), doctest::Contains("f.json: record 3"), Error);
    CHECK_THROWS_WITH_AS(encode(record, chat), doctest::Contains(said), Error);
    CHECK_THROWS_WITH_AS(encode(record, chat), doctest::Contains("out"), Error);  // leave or take it
  };
  refused(R"({"role":"assistant","content":null})", "content is null (a tool call?)");
  refused(R"({"role":"assistant","content":null,"tool_calls":[{"id":"1"}]})", "tool_calls is given");
  refused(R"({"role":"assistant","content":"x","function_call":{"name":"f"}})", "function_call is given");
  refused(R"({"role":"tool","content":"x"})", "role is \"tool\"");
  refused(R"({"role":"\u001b[31mred","content":"x"})", R"(role is "\u001b[31mred")");
  refused(R"({"role":"user","content":"x"})", "turn 2 is the user's");
  refused(R"({"role":"assistant","content":[{"type":"image_url","image_url":{}}]})", "type \"image_url\"");
  refused(R"({"role":"assistant","content":"\ud83d"})", "half of a character");
  CHECK(shown(encode(R"({"messages":[{"role":"user","content":"u"},
    {"role":"assistant","content":"v","tool_calls":[]}]})",
                     chat)) == "<s>[INST] u [/INST] V </S>");
}

TEST_CASE("chats: parts of text and ShareGPT's names are read") {
  const EncodeOptions chat{"chat", "llama2", false, false, 1000};
  const std::string wanted = "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nu [/INST] VW </S>";
  CHECK(shown(encode(R"({"messages":[{"role":"system","content":"s"},
    {"role":"user","content":[{"type":"text","text":"u"}]},
    {"role":"assistant","content":[{"type":"text","text":"v"},{"type":"text","text":"w"}]}]})",
                     chat)) == wanted);
  CHECK(shown(encode(R"({"id":"7","conversations":[{"from":"system","value":"s"},{"from":"human","value":"u"},
    {"from":"gpt","value":"vw"}]})",
                     chat)) == wanted);
  CHECK(shown(encode(R"({"conversations":[{"role":"system","content":"s"},{"role":"user","content":"u"},
    {"role":"assistant","content":"vw"}]})",
                     chat)) == wanted);
  CHECK(shown(encode(R"({"messages":[{"from":"system","value":"s"},{"from":"human","value":"u"},
    {"from":"gpt","value":"vw"}]})",
                     chat)) == wanted);
  // A table with both columns, or both keys, has null in one of them.
  CHECK(shown(encode(R"({"messages":[{"from":null,"value":null,"role":"system","content":"s"},
    {"from":"human","value":"u","role":null,"content":null},{"from":"gpt","value":"vw","role":null}]})",
                     chat)) == wanted);
  CHECK(shown(encode(R"({"messages":null,"conversations":[{"from":"system","value":"s"},
    {"from":"human","value":"u"},{"from":"gpt","value":"vw"}]})",
                     chat)) == wanted);
  for (const char* list : {"conversations", "messages"}) {
    const auto refused = [&](const char* message, const char* said) {
      CHECK_THROWS_WITH_AS(encode(fmt::format(R"({{"{}":[{}]}})", list, message), chat),
                           doctest::Contains(said), Error);
    };
    refused(R"({"from":"observation","value":"s"})", "role is \"observation\"");
    refused(R"({"from":"human"})", "value is missing");
    refused(R"({"from":"human","content":"s"})", "role is missing");
    refused(R"({"role":"user","value":"s"})", "content is missing");
    refused(R"({"value":"s"})", "role is missing");
    refused(R"({"from":"human","value":null})", "value is null");
  }
}

TEST_CASE("an empty reply is marked") {
  const EncodeOptions alpaca{"alpaca", "none", false, false, 100}, chat{"chat", "llama2", false, false, 100};
  CHECK(encode(R"({"instruction":"p","output":null})", alpaca).empty_reply);
  CHECK_FALSE(encode(R"({"instruction":"p","output":"q"})", alpaca).empty_reply);
  CHECK(encode(R"({"messages":[{"role":"user","content":"u"},{"role":"assistant","content":""}]})", chat)
            .empty_reply);
  CHECK_FALSE(
      encode(R"({"messages":[{"role":"user","content":""},{"role":"assistant","content":"v"}]})", chat)
          .empty_reply);
}

TEST_CASE("broken records are errors that name file and record") {
  const EncodeOptions alpaca{"alpaca", "none", false, false, 100}, chat{"chat", "llama2", false, false, 100};
  for (const char* record :
       {"7", "[]", "{}", R"({"instruction":7,"output":"x"})", R"({"instruction":"x"})",
        R"({"instruction":"x","output":["y"]})", R"({"instruction":"x","instruction":"y"})"})
    CHECK_THROWS_WITH_AS(encode(record, alpaca), doctest::Contains("f.json: record 3"), Error);
  for (const char* record :
       {"{}", R"({"messages":7})", R"({"messages":[7]})", R"({"messages":[{"role":"user"}]})"})
    CHECK_THROWS_WITH_AS(encode(record, chat), doctest::Contains("f.json: record 3"), Error);
  CHECK_THROWS_WITH_AS(encode(R"({"chat":[]})", chat), doctest::Contains("messages is missing"), Error);
}

TEST_CASE("inputs with nothing to be scored are counted, and leave no directory") {
  const TemporaryDirectory folder;
  TokenizeOptions options;
  options.encode.context = 8;
  options.out = folder / "out";
  options.show_progress = false;
  for (const char* name : {"a.txt", "b.txt", "c.txt"})
    write_file(options.inputs.emplace_back(folder / name), "");
  CHECK_THROWS_WITH_AS(tokenize_files(PairTokenizer(), options),
                       doctest::Contains("a.txt: nothing to be scored in it and 2 more; no shard"), Error);
  options.inputs.resize(1);
  CHECK_THROWS_WITH_AS(tokenize_files(PairTokenizer(), options),
                       doctest::Contains("a.txt: nothing to be scored in it; no shard"), Error);
  CHECK(!fs::exists(options.out));
}

TEST_CASE("where the output directory cannot be made, the cause is said") {
  const TemporaryDirectory folder;
  fs::create_directory(folder / "closed");
  fs::permissions(folder / "closed", fs::perms::owner_read | fs::perms::owner_exec);
  if (::access((folder / "closed").c_str(), W_OK) == 0) return;  // root may write everywhere
  TokenizeOptions options;
  write_file(options.inputs.emplace_back(folder / "a.txt"), "text");
  options.out = folder / "closed/out";
  CHECK_THROWS_WITH_AS(tokenize_files(PairTokenizer(), options),
                       doctest::Contains("closed/out: cannot create: Permission denied"), Error);
}

TEST_CASE("the number of threads changes no byte") {
  const TemporaryDirectory folder(memory_folder());
  const PairTokenizer tokenizer;
  int number = 0;
  for (Job& job : jobs(folder)) {
    const fs::path one = folder / fmt::format("one-{}", number),
                   three = folder / fmt::format("three-{}", number);
    ++number;
    job.options.out = one;
    const TokenizeSummary summary = tokenize_files(tokenizer, job.options);
    job.options.out = three;
    job.options.workers = 3;
    tokenize_files(tokenizer, job.options);
    CHECK(content(one) == content(three));
    CHECK(summary.shards > 2);
    CHECK(summary.documents + summary.dropped == (job.name == "text" ? 43 : 60));
    CHECK(summary.dropped >= (job.name == "text" ? 1 : 0));
    const auto dataset =
        open_dataset(one, {job.options.encode.context, tokenizer.vocab_size, true, tokenizer.sha256});
    CHECK(dataset->size() == summary.rows);
    CHECK(dataset->hash() == open_dataset(three, {})->hash());
  }
}

TEST_CASE("a run that dies anywhere goes on behind its last shard, to the same bytes") {
  const TemporaryDirectory folder(memory_folder());
  int number = 0, kept = 0;
  for (Job& job : jobs(folder)) {
    job.options.out = folder / fmt::format("straight-{}", number);
    const TokenizeSummary straight = tokenize_files(PairTokenizer(), job.options);
    const auto wanted = content(job.options.out);
    for (int64_t calls = 0; calls < 130; calls += 9) {
      job.options.out = folder / fmt::format("broken-{}-{}", number, calls);
      bool crashed = false;
      try {
        tokenize_files(PairTokenizer(calls), job.options);
      } catch (const std::runtime_error&) {
        crashed = true;
        CHECK_THROWS_AS(open_dataset(job.options.out, {}), Error);  // unfinished
      }
      const TokenizeSummary again = tokenize_files(PairTokenizer(), job.options);
      kept += crashed && again.kept_shards > 0;
      REQUIRE(content(job.options.out) == wanted);
      REQUIRE(again.documents == straight.documents);
      REQUIRE(again.truncated == straight.truncated);
      REQUIRE(again.dropped == straight.dropped);
      REQUIRE(again.tokens == straight.tokens);
      fs::remove_all(job.options.out);
    }
    ++number;
  }
  CHECK(kept > 20);
}

TEST_CASE("a kept shard must still be what it was; other runs and foreign directories are refused") {
  const TemporaryDirectory folder(memory_folder());
  Job job = jobs(folder)[0];
  const fs::path out = job.options.out = folder / "out";
  tokenize_files(PairTokenizer(), job.options);
  const auto wanted = content(out);
  CHECK(tokenize_files(PairTokenizer(), job.options).kept_shards > 2);  // nothing to do
  CHECK(content(out) == wanted);

  Job other = job;
  other.options.encode.context = 32;
  CHECK_THROWS_WITH_AS(tokenize_files(PairTokenizer(), other.options),
                       doctest::Contains("\"context\" 64, not 32"), Error);
  CHECK(content(out) == wanted);
  fs::remove_all(out);

  CHECK_THROWS(tokenize_files(PairTokenizer(35), job.options));
  CHECK_THROWS_WITH_AS(tokenize_files(PairTokenizer(), other.options), doctest::Contains("holds another run"),
                       Error);
  std::string bytes = read_file(out / ".tmp-tokenize/data-00001.h5");
  bytes[bytes.size() / 2] ^= 1;
  write_file(out / ".tmp-tokenize/data-00001.h5", bytes);
  CHECK(tokenize_files(PairTokenizer(), job.options).kept_shards == 1);
  CHECK(content(out) == wanted);

  fs::create_directory(folder / "mine");
  write_file(folder / "mine/letter.txt", "dear");
  job.options.out = folder / "mine";
  CHECK_THROWS_WITH_AS(tokenize_files(PairTokenizer(), job.options), doctest::Contains("not empty"), Error);
  job.options.out = folder / "a.txt";
  CHECK_THROWS_AS(tokenize_files(PairTokenizer(), job.options), Error);
  job.options.out = folder / "void";
  fs::create_directory(folder / "void");  // an empty directory may be there already
  tokenize_files(PairTokenizer(), job.options);
  CHECK(content(folder / "void") == wanted);
}

TEST_CASE("broken input leaves nothing behind") {
  const TemporaryDirectory folder(memory_folder());
  TokenizeOptions options{{folder / "x.json"},
                          folder / "out",
                          {"alpaca", "llama2", false, false, 64},
                          Packing::none,
                          4,
                          2,
                          false};
  const std::string good = records(30);
  for (const std::string& text : {good.substr(0, good.size() / 2), good.substr(0, good.size() - 1) + ",7]",
                                  std::string("[]"), std::string(1000, '[')}) {
    write_file(folder / "x.json", text);
    CHECK_THROWS_WITH_AS(tokenize_files(PairTokenizer(), options), doctest::Contains("x.json"), Error);
    CHECK(!fs::exists(folder / "out"));
  }
  options.encode = {"text", "none", false, false, 64};
  CHECK_THROWS_WITH_AS(tokenize_files(PairTokenizer(), options), doctest::Contains("--format alpaca"), Error);
  options.inputs = {folder / "x.txt"};
  for (const std::string& text : {std::string("caf\xe9 noir"), std::string("a\0b", 3)}) {
    write_file(folder / "x.txt", text);
    CHECK_THROWS_WITH_AS(tokenize_files(PairTokenizer(), options), doctest::Contains("is no UTF-8 text"),
                         Error);
    CHECK(!fs::exists(folder / "out"));
  }
  const auto bytes = [](std::string_view text) { return std::string(text); };
  using namespace std::string_view_literals;
  for (const auto& [text, said] :
       {std::pair(bytes("\x1f\x8b\x08\0\0\0"sv), "x.txt: looks like gzip: decompress it first"),
        {bytes("PAR1\x15\4\x15\xff"sv), "looks like parquet: write it as JSON lines first"},
        {bytes("ARROW1\0\0"sv), "looks like arrow: write it as JSON lines"},
        {bytes("PK\3\4\x14\0"sv), "looks like a zip archive: unpack"},
        {bytes("\x28\xb5\x2f\xfd\4"sv), "looks like zstd: decompress"},
        {bytes("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"sv), "run git lfs pull"}})
    for (const char* format : {"text", "alpaca"}) {
      write_file(folder / "x.txt", text);
      options.encode = {format, "none", false, false, 64};
      CHECK_THROWS_WITH_AS(tokenize_files(PairTokenizer(), options), doctest::Contains(said), Error);
      CHECK(!fs::exists(folder / "out"));
    }
  options.encode = {"alpaca", "llama2", false, false, 64};
  options.inputs = {folder / "missing.json"};
  CHECK_THROWS_WITH_AS(tokenize_files(PairTokenizer(), options), doctest::Contains("missing.json"), Error);
  CHECK(!fs::exists(folder / "out"));
}

TEST_CASE(
    "program: kill -9 at several moments, then the same command, gives the bytes of an undisturbed run") {
  const TemporaryDirectory folder(memory_folder());
  write_file(folder / "text.txt", words(3, 400000));
  const auto command = [&](const std::string& out) {
    return std::vector<std::string>{
        "tokenize",  "--tokenizer", "byte",  "--input", (folder / "text.txt").string(),
        "--context", "256",         "--out", out,       "--rows-per-shard",
        "100"};
  };
  REQUIRE(run_program(command((folder / "straight").string())) == 0);
  const auto wanted = content(folder / "straight");
  REQUIRE(wanted.size() == 17);
  const std::string out = (folder / "killed").string();
  int killed = 0;
  for (const char* file : {".tmp-tokenize", ".tmp-tokenize/data-00000.h5", ".tmp-tokenize/data-00003.h5",
                           ".tmp-tokenize/data-00009.h5", "data-00000.h5", "data-00015.h5", kManifestName}) {
    // Each start goes on from the last kill; the last but one moments lie in the move into place.
    killed += run_program(command(out), RLIM_INFINITY, [&] { return fs::exists(fs::path(out) / file); }) ==
              -SIGKILL;
  }
  CHECK(killed >= 3);
  CHECK(run_program(command(out)) == 0);
  CHECK(content(out) == wanted);
  fs::create_directory(fs::path(out) / ".tmp-tokenize");  // killed while it cleared up
  CHECK(run_program(command(out)) == 0);
  CHECK(content(out) == wanted);
}

TEST_CASE("program: a full disk is an error, and nothing looks finished") {
  const TemporaryDirectory folder(memory_folder());
  write_file(folder / "text.txt", words(3, 60000));
  const fs::path out = folder / "out";
  const std::vector<std::string> command{
      "tokenize",  "--tokenizer", "byte",  "--input",   (folder / "text.txt").string(),
      "--context", "256",         "--out", out.string()};
  REQUIRE(run_program(command) == 0);
  const auto wanted = content(out);
  const auto size = static_cast<rlim_t>(wanted.at("data-00000.h5").size());
  fs::remove_all(out);
  for (const rlim_t limit :
       {rlim_t{1}, rlim_t{100}, rlim_t{3000}, size / 2, size - 5000, size - 2000, size - 1}) {
    CAPTURE(limit);
    CHECK(run_program(command, limit) == 3);
    for (const auto& [name, bytes] : content(out)) CHECK(name.find(".tmp") != std::string::npos);
    CHECK_THROWS_AS(open_dataset(out, {}), Error);
  }
  CHECK(run_program(command, size) == 0);
  CHECK(content(out) == wanted);
}
