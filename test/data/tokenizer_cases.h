// Cases of test/golden/tokenizer and of scripts/check_tokenizer_parity.py: a JSON object on each line.
#pragma once

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/json.h"
#include "data/tokenizer.h"

namespace sinklora::test {

struct CaseCounts {
  int64_t texts = 0, tokens = 0, mismatches = 0;
};

inline CaseCounts check_cases(const Tokenizer& tokenizer, const std::filesystem::path& path) {
  CaseCounts counts;
  std::ifstream file(path);
  REQUIRE_MESSAGE(file.good(), path.string());
  for (std::string line; std::getline(file, line); ++counts.texts) {
    const Json json = parse_json(line, path.string());
    const auto text = json["text"].get<std::string>();
    const auto wanted = json["ids"].get<std::vector<int32_t>>();
    const auto found = tokenizer.encode(text, json.value("special", false));
    counts.tokens += static_cast<int64_t>(wanted.size());
    if (found == wanted) continue;
    ++counts.mismatches;
    CHECK_MESSAGE(Json(found).dump() == Json(wanted).dump(), path.string(), ": ",
                  Json(text).dump().substr(0, 200));
  }
  return counts;
}

}  // namespace sinklora::test
