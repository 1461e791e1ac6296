#include "cli/option_checks.h"

#include <doctest/doctest.h>

#include "base/files.h"
#include "test/temporary.h"

using namespace sinklora;

namespace {

bool accepts(const std::string& text, int64_t* count, double* number) {
  CLI::App app;
  if (count)
    add_count(app, "--value", *count, "", 1, 1'000'000'000);
  else
    add_number(app, "--value", *number, "", 0, 1e38);
  try {
    app.parse(std::vector<std::string>{text, "--value"});  // CLI11 takes a vector from its end
    return true;
  } catch (const CLI::ParseError& error) {
    CHECK(error.get_exit_code() != 0);
    return false;
  }
}

}  // namespace

TEST_CASE("a count is a plain decimal whole number with an optional unit") {
  int64_t value = 0;
  for (const char* wrong :
       {"", " ", "-1", "010", "0x10", "+5", "1.5", "1e6", "nan", "inf", "8K", "8kk", "k", "5 6", "0", "2G",
        "99999999999999999999", "9223372036854775807", "9000000000000000G"}) {
    CAPTURE(wrong);
    CHECK(!accepts(wrong, &value, nullptr));
  }
  CHECK((accepts("4096", &value, nullptr) && value == 4096));
  CHECK((accepts("8k", &value, nullptr) && value == 8000));
  CHECK((accepts("2M", &value, nullptr) && value == 2'000'000));
  CHECK((accepts("1G", &value, nullptr) && value == 1'000'000'000));
}

TEST_CASE("a number is finite, decimal and in range") {
  double value = 0;
  for (const std::string wrong : {"", " ", "nan", "NAN", "inf", "-inf", "infinity", "-1", "1e39", "1e400",
                                  "0x10", "1,5", "2e-5x", "--", "1 2", " 1"}) {
    CAPTURE(wrong);
    CHECK(!accepts(wrong, nullptr, &value));
  }
  CHECK((accepts("2e-5", nullptr, &value) && value == 2e-5));
  CHECK((accepts("0", nullptr, &value) && value == 0));
  CHECK((accepts("0.25", nullptr, &value) && value == 0.25));
}

TEST_CASE("a choice is one of its words") {
  for (const std::string word : {"full", "fulll", "", "FULL"}) {
    CLI::App app;
    std::string value = "sf";
    add_choice(app, "--attention", value, "", {"full", "sf"});
    const std::vector<std::string> arguments{word, "--attention"};
    if (word == "full") {
      CHECK_NOTHROW(app.parse(std::vector<std::string>(arguments)));
      CHECK(value == "full");
    } else {
      CHECK_THROWS_AS(app.parse(std::vector<std::string>(arguments)), CLI::ParseError);
    }
  }
}

TEST_CASE("a run stands for its newest checkpoint, every other folder for itself") {
  const test::TemporaryDirectory folder;
  std::filesystem::create_directories(folder / "run");
  std::filesystem::create_directories(folder / "model");
  write_text_atomically(folder / "run/latest", "step-00000020\n");
  for (const auto& [given, meant] :
       {std::pair{"run", "run/step-00000020"}, {"model", "model"}, {"none", "none"}}) {
    CLI::App app;
    std::filesystem::path value;
    accept_run(app.add_option("--adapter", value, ""));
    app.parse(std::vector<std::string>{(folder / given).string(), "--adapter"});
    CHECK(value == folder / meant);
  }
}
