#include "comm/agreement.h"

#include <algorithm>
#include <array>
#include <map>

#include "base/error.h"
#include "base/hash.h"

namespace sinklora {
namespace {

constexpr size_t kShown = 120;  // bytes of a value that the error shows
using Shown = std::array<char, kShown>;

Shown shown(const std::string& value) {
  Shown text{};
  for (size_t i = 0; i < std::min(value.size(), kShown - 1); ++i)
    text[i] = value[i] >= ' ' && value[i] <= '~' ? value[i] : '?';
  if (value.size() >= kShown) std::fill_n(text.end() - 4, 3, '.');
  return text;
}

// "lr is 2e-5 on ranks 0, 1, 3 and 3e-5 on rank 2"
std::string describe(const std::string& name, std::span<const uint64_t> hashes,
                     std::span<const Shown> texts) {
  std::map<uint64_t, std::vector<size_t>> ranks_by_hash;
  for (size_t rank = 0; rank < hashes.size(); ++rank) ranks_by_hash[hashes[rank]].push_back(rank);
  std::vector<std::vector<size_t>> groups;
  for (auto& [hash, ranks] : ranks_by_hash) groups.push_back(std::move(ranks));
  std::sort(groups.begin(), groups.end());
  std::vector<std::string> parts;
  for (const std::vector<size_t>& ranks : groups)
    parts.push_back(fmt::format("'{}' on rank{} {}", texts[ranks.front()].data(),
                                ranks.size() == 1 ? "" : "s", fmt::join(ranks, ", ")));
  return fmt::format("{} is {}", name, fmt::join(parts, " and "));
}

}  // namespace

void agree(Communicator& communicator, const std::vector<Field>& fields, std::string_view what,
           std::string_view remedy) {
  std::string names;
  for (const Field& field : fields) names += field.name + '\n';
  const auto world_size = static_cast<size_t>(communicator.world_size());
  const std::vector<uint64_t> lists = gather(communicator, std::vector{xxh3_64(names)});
  if (std::any_of(lists.begin(), lists.end(), [&](uint64_t list) { return list != lists[0]; })) {
    const std::vector<Shown> texts =
        gather(communicator, std::vector{shown(fmt::format("{} fields", fields.size()))});
    fail(ExitCode::communicator, "{} the ranks compare different fields: {}; run the same program on all",
         what, describe("the list", lists, texts));
  }
  std::vector<uint64_t> mine;
  for (const Field& field : fields) mine.push_back(xxh3_64(field.value));
  const std::vector<uint64_t> all = gather(communicator, mine);

  // Everyone holds the same table, so everyone finds the same fields and takes part in showing them.
  std::vector<std::string> complaints;
  for (size_t i = 0; i < fields.size(); ++i) {
    std::vector<uint64_t> hashes;
    for (size_t rank = 0; rank < world_size; ++rank) hashes.push_back(all[rank * fields.size() + i]);
    if (std::any_of(hashes.begin(), hashes.end(), [&](uint64_t hash) { return hash != hashes[0]; }))
      complaints.push_back(
          describe(fields[i].name, hashes, gather(communicator, std::vector{shown(fields[i].value)})));
  }
  if (!complaints.empty())
    fail(ExitCode::communicator, "{} the ranks disagree: {}; {}", what, fmt::join(complaints, "; "), remedy);
}

}  // namespace sinklora
