// Rows on disk: what is written is what is read, and nothing damaged or foreign is read as something else.
#include <doctest/doctest.h>

#include <algorithm>
#include <functional>

#include "base/random.h"
#include "data/dataset.h"
#include "data/manifest.h"
#include "data/packer.h"
#include "data/shard_reader.h"
#include "test/data/fixtures.h"
#include "test/data/raw_shard.h"
#include "test/temporary.h"

using namespace sinklora;
using namespace sinklora::test;
namespace fs = std::filesystem;

namespace {

std::vector<EncodedDocument> random_documents(uint64_t seed, int count, int longest) {
  const RandomStream random(seed, "documents");
  std::vector<EncodedDocument> documents;
  uint64_t draw = 0;
  for (int d = 0; d < count; ++d) {
    EncodedDocument document;
    const auto size = 2 + static_cast<int32_t>(random.below(draw++, static_cast<uint64_t>(longest)));
    for (int32_t t = 0; t < size; ++t) {
      document.ids.push_back(1000 * (d + 1) + t);  // a token says of which document and position it is
      document.scored.push_back(t == size - 1 || random.below(draw++, 4) != 0);
    }
    documents.push_back(document);
  }
  return documents;
}

ShardInfo info_of(int64_t context) { return {context, 1000000, 7, 1, 2, std::string(64, 'a'), "s", "none"}; }

ShardEntry write_shard(const fs::path& path, const std::vector<EncodedDocument>& documents, int64_t context,
                       Packing packing) {
  ShardWriter writer(path, info_of(context));
  Packer packer(context, packing, [&](const TokenRow& row, int64_t) { writer.append(row); });
  for (size_t d = 0; d < documents.size(); ++d) packer.add(documents[d], static_cast<int64_t>(d));
  packer.finish();
  return writer.finish();
}

void write_manifest(const fs::path& folder, const std::vector<ShardEntry>& entries) {
  Json list = Json::array();
  for (const ShardEntry& entry : entries) list.push_back(to_json(entry));
  write_file(folder / kManifestName, Json{{"shards", list}}.dump());
}

std::vector<Sample> read_all(const Dataset& dataset) {
  std::vector<Sample> samples;
  for (int64_t i = 0; i < dataset.size(); ++i) samples.push_back(dataset.read(i));
  return samples;
}

bool same(const std::vector<Sample>& a, const std::vector<Sample>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Sample& x, const Sample& y) {
    return x.ids == y.ids && x.targets == y.targets && x.document_starts == y.document_starts;
  });
}

}  // namespace

TEST_CASE(
    "rows: every token once and in order, targets are the next token of the same document, scored where "
    "asked") {
  for (const Packing packing : {Packing::none, Packing::whole, Packing::stream}) {
    for (uint64_t seed = 0; seed < 8; ++seed) {
      const int64_t context = 5 + static_cast<int64_t>(3 * seed);
      // Whole packing is for documents that fit a row.
      const int longest = packing == Packing::whole ? static_cast<int>(context) - 2 : 40;
      const auto documents = random_documents(seed, 30, longest);
      const TemporaryDirectory folder(memory_folder());
      const ShardEntry entry = write_shard(folder / "data-00000.h5", documents, context, packing);
      DatasetOptions options;
      options.context = context;
      options.vocab_size = 1000000;
      const auto dataset = open_dataset(folder / "data-00000.h5", options);
      REQUIRE(dataset->size() == entry.n_examples);

      std::vector<int32_t> seen, wanted;
      int64_t scored = 0;
      for (const Sample& sample : read_all(*dataset)) {
        const size_t n = sample.ids.size();
        REQUIRE(n <= static_cast<size_t>(context));
        REQUIRE(sample.targets.size() == n);
        seen.insert(seen.end(), sample.ids.begin(), sample.ids.end());
        for (size_t t = 0; t < n; ++t) {
          const bool starts = std::binary_search(sample.document_starts.begin(), sample.document_starts.end(),
                                                 static_cast<int64_t>(t));
          const bool new_document = t == 0 || sample.ids[t] / 1000 != sample.ids[t - 1] / 1000;
          REQUIRE(starts == new_document);
          const EncodedDocument& document = documents[static_cast<size_t>(sample.ids[t] / 1000 - 1)];
          const auto next = static_cast<size_t>(sample.ids[t] % 1000 + 1);
          const bool next_is_here = t + 1 < n && next < document.ids.size();
          const int32_t target = next_is_here && document.scored[next] ? document.ids[next] : kNotScored;
          REQUIRE(sample.targets[t] == target);
          scored += target != kNotScored;
        }
      }
      for (const auto& document : documents)
        wanted.insert(wanted.end(), document.ids.begin(), document.ids.end());
      if (packing == Packing::none) {
        // Rows without anything to score are left out, so some tokens may be missing, in order.
        CHECK(std::includes(wanted.begin(), wanted.end(), seen.begin(), seen.end()));
      } else {
        CHECK(wanted.size() - seen.size() < static_cast<size_t>(context));
        CHECK(std::includes(wanted.begin(), wanted.end(), seen.begin(), seen.end()));
      }
      size_t most = 1;
      for (const Sample& sample : read_all(*dataset)) most = std::max(most, sample.document_starts.size());
      CHECK(dataset->most_documents() == static_cast<int64_t>(most));
      options.separate_documents = false;
      CHECK(open_dataset(folder / "data-00000.h5", options)->most_documents() == 1);
      CHECK(scored == entry.scored_tokens);
      CHECK(static_cast<int64_t>(seen.size()) == entry.tokens);
    }
  }
}

TEST_CASE("the three rows on disk are ids, mask and shifted labels, padded at the end") {
  const TemporaryDirectory folder(memory_folder());
  write_shard(folder / "s.h5", {{{11, 12, 13}, {0, 1, 1}, false, false}, {{21, 22}, {1, 1}, false, false}}, 7,
              Packing::stream);
  const Hdf5Reader file(folder / "s.h5");
  std::vector<int32_t> cells(21);
  file.open("data", 3, 4).read(0, 1, cells);
  CHECK(cells == std::vector<int32_t>{11, 12, 13, 21, 22, 7, 7,  //
                                      1,  1,  0,  1,  0,  0, 0,  //
                                      12, 13, 21, 22, 7,  7, 7});
  CHECK(file.integer("n_examples") == 1);
  CHECK(file.integer("complete") == 1);
  CHECK(file.text("schema") == "cerebras-sft-3xL/1");
  CHECK(!file.integer("no such"));
}

TEST_CASE("equal rows give equal bytes, and an unfinished shard leaves nothing") {
  const TemporaryDirectory folder(memory_folder());
  const auto documents = random_documents(1, 20, 30);
  const ShardEntry a = write_shard(folder / "a.h5", documents, 16, Packing::stream);
  const ShardEntry b = write_shard(folder / "b.h5", documents, 16, Packing::stream);
  CHECK(a.xxh3_128 == b.xxh3_128);
  { ShardWriter writer(folder / "c.h5", info_of(16)); }
  CHECK(content(folder.path()).size() == 2);
}

TEST_CASE("a shard of Cerebras' is read: the mask becomes targets, and targets give the mask back") {
  const RandomStream random(3, "mask");
  const TemporaryDirectory folder(memory_folder());
  const int64_t length = 12, rows = 40;
  RawShard raw{{rows, 3, length}};
  for (int64_t r = 0; r < rows; ++r) {
    // ids = tokens[:-1], labels = tokens[1:], mask = weight[1:], padded by 0: the last position can be
    // scored.
    const auto real = static_cast<int64_t>(2 + random.below(static_cast<uint64_t>(3 * r), length - 1));
    for (int64_t row = 0; row < 3; ++row)
      for (int64_t t = 0; t < length; ++t) {
        const bool weight = random.below(static_cast<uint64_t>(1000 + r * length + t), 2) == 1;
        const int64_t value = row == 0 ? 50 + t : row == 1 ? weight : 51 + t;
        raw.values.push_back(static_cast<int32_t>(t < real ? value : 0));
      }
  }
  raw.attributes = {{"n_examples", rows}};
  raw.write(folder / "output_chunk_0.h5");
  DatasetOptions options;
  options.context = length;
  options.vocab_size = 100;
  const auto dataset = open_dataset(folder.path(), options);
  REQUIRE(dataset->size() == rows);
  int64_t masked = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const Sample sample = dataset->read(r);
    masked += std::count(sample.targets.begin(), sample.targets.end() - 1, kNotScored);
    const int32_t* cells = raw.values.data() + r * 3 * length;
    CHECK(sample.document_starts == std::vector<int64_t>{0});
    for (int64_t t = 0; t < length; ++t) {
      const bool inside = t < static_cast<int64_t>(sample.ids.size());
      const int32_t target = inside ? sample.targets[static_cast<size_t>(t)] : kNotScored;
      REQUIRE((target != kNotScored) == (cells[length + t] == 1));
      if (target != kNotScored) REQUIRE(target == cells[2 * length + t]);
      if (inside) REQUIRE(sample.ids[static_cast<size_t>(t)] == cells[t]);
    }
  }
  CHECK(masked > 0);
  CHECK(dataset->read_all().masked == masked);
}

TEST_CASE("hostile and unfit shards are refused, naming the file") {
  const TemporaryDirectory folder(memory_folder());
  const fs::path path = folder / "x.h5";
  DatasetOptions options;
  options.context = 4;
  options.vocab_size = 100;
  const auto refused = [&](const RawShard& raw, const char* why) {
    raw.write(path);
    CAPTURE(why);
    const auto all = [&] { read_all(*open_dataset(path, options)); };
    CHECK_THROWS_WITH_AS(all(), doctest::Contains(why), Error);
    CHECK_THROWS_WITH_AS(all(), doctest::Contains("x.h5"), Error);
  };
  const std::vector<int32_t> good{1, 2, 3, 4, 1, 1, 1, 0, 2, 3, 4, 0};
  const auto with = [&](size_t place, int32_t value) {
    RawShard raw{{1, 3, 4}, good, {{"n_examples", 1}}};
    raw.values[place] = value;
    return raw;
  };
  with(0, 1).write(path);
  CHECK(open_dataset(path, options)->read(0).targets == std::vector<int32_t>{2, 3, 4});

  refused({{1, 3, 4}, good, {}}, "n_examples is missing");
  refused({{1, 3, 4}, good, {{"n_examples", 2}}}, "n_examples says 2");
  refused({{1, 3, 4}, good, {{"n_examples", -1}}}, "n_examples says -1");
  refused({{1, 3, 4}, good, {{"n_examples", 1}, {"max_seq_length", 5}}}, "max_seq_length");
  refused({{0, 3, 4}, {}, {{"n_examples", 0}}}, "0 samples");
  refused({{3, 4}, good, {{"n_examples", 1}}}, "dimensions");
  refused({{1, 4, 3}, good, {{"n_examples", 1}}}, "4 rows a sample");
  refused({{1, 3, 4}, good, {{"n_examples", 1}}, RawShard::Type::int64}, "wrong type");
  refused({{1, 3, 4}, good, {{"n_examples", 1}}, RawShard::Type::uint32}, "wrong type");
  refused({{1, 3, 4}, good, {{"n_examples", 1}}, RawShard::Type::float32}, "wrong type");
  refused({{2, 3, 2}, good, {{"n_examples", 2}}}, "context 2, but 4");
  refused({{1, 3, int64_t{1} << 30}, {}, {{"n_examples", 1}}}, "1073741824");
  refused(with(1, 100), "token 100");
  refused(with(1, -2), "token -2");
  refused(with(9, 100), "token 100");
  refused(with(5, 2), "loss mask 2");
  RawShard unfinished{{1, 3, 4}, good, {{"n_examples", 1}}};
  unfinished.schema = "cerebras-sft-3xL/1";
  refused(unfinished, "never finished");
  unfinished.attributes.push_back({"complete", 1});
  refused(unfinished, "/doc_len");
  unfinished.schema = "other/9";
  refused(unfinished, "other/9");

  write_file(path, "no HDF5 at all");
  CHECK_THROWS_WITH_AS(open_dataset(path, options), doctest::Contains("x.h5"), Error);
  CHECK_THROWS_WITH_AS(open_dataset(folder / "none.h5", options), doctest::Contains("none.h5"), Error);
  fs::create_directory(folder / "empty");
  CHECK_THROWS_WITH_AS(open_dataset(folder / "empty", options), doctest::Contains("no .h5"), Error);
}

TEST_CASE("content that lies elsewhere is not followed") {
  const TemporaryDirectory folder(memory_folder());
  RawShard raw{{1, 3, 4}, {1, 2, 3, 4, 1, 1, 1, 0, 2, 3, 4, 0}, {{"n_examples", 1}}};
  raw.name = "real";
  for (const RawShard::Detour detour :
       {RawShard::Detour::soft_link, RawShard::Detour::external_link, RawShard::Detour::external_storage}) {
    raw.detour = detour;
    raw.write(folder / "x.h5");
    CHECK_THROWS_WITH_AS(ShardReader(folder / "x.h5"), doctest::Contains("refusing to follow"), Error);
  }
}

TEST_CASE("a filter that is missing is no damage") {
  const TemporaryDirectory folder(memory_folder());
  RawShard raw{{1, 3, 4}, {1, 2, 3, 4, 1, 1, 1, 0, 2, 3, 4, 0}, {{"n_examples", 1}}};
  raw.filter = 32000;
  raw.write(folder / "x.h5");
  CHECK_THROWS_WITH_AS(ShardReader(folder / "x.h5"),
                       doctest::Contains("compressed with lzf, which is not read; write it with gzip"),
                       Error);
  raw.filter = 32015;
  raw.write(folder / "x.h5");
  CHECK_THROWS_WITH_AS(ShardReader(folder / "x.h5"), doctest::Contains("filter 32015"), Error);
}

TEST_CASE("data must fit the model: vocabulary and tokenizer") {
  const TemporaryDirectory folder(memory_folder());
  write_shard(folder / "s.h5", random_documents(1, 4, 10), 8, Packing::stream);
  DatasetOptions options;
  options.context = 8;
  options.vocab_size = 4001;  // the fourth document holds more
  CHECK_THROWS_WITH_AS(open_dataset(folder / "s.h5", options), doctest::Contains("vocabulary has 4001"),
                       Error);
  options.vocab_size = 0;
  options.tokenizer_sha256 = std::string(64, 'b');
  CHECK_THROWS_WITH_AS(open_dataset(folder / "s.h5", options), doctest::Contains("--force-tokenizer"), Error);
  options.force_tokenizer = true;
  CHECK(open_dataset(folder / "s.h5", options)->size() > 0);
}

TEST_CASE("single bit flips and truncations never change what is read in silence") {
  const TemporaryDirectory folder(memory_folder());
  const fs::path path = folder / "data-00000.h5";
  const ShardEntry entry = write_shard(path, random_documents(9, 40, 60), 64, Packing::stream);
  const DatasetOptions options{64, 1000000, true, "", false};
  const std::vector<Sample> original = read_all(*open_dataset(path, options));
  const std::string bytes = read_file(path);
  const RandomStream random(1, "flips");
  int harmless = 0;
  for (uint64_t trial = 0; trial < 300; ++trial) {
    std::string damaged = bytes;
    const uint64_t bit = random.below(trial, 8 * bytes.size());
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    write_file(path, damaged);
    // Without a manifest the checksums inside the file alone have to find it.
    fs::remove(folder / kManifestName);
    std::vector<Sample> read;
    try {
      read = read_all(*open_dataset(path, options));
    } catch (const Error& error) {
      REQUIRE(std::string(error.what()).find("data-00000.h5") != std::string::npos);
    }
    if (!read.empty()) REQUIRE(same(read, original));
    harmless += !read.empty();
    write_manifest(folder.path(), {entry});
    CHECK_THROWS_WITH_AS(open_dataset(folder.path(), options), doctest::Contains("hash in its manifest"),
                         Error);
  }
  CHECK(harmless < 100);
  for (uint64_t trial = 0; trial < 100; ++trial) {
    write_file(path, std::string_view(bytes).substr(0, random.below(1000 + trial, bytes.size())));
    fs::remove(folder / kManifestName);
    CHECK_THROWS_WITH_AS(read_all(*open_dataset(path, options)), doctest::Contains("data-00000.h5"), Error);
    write_manifest(folder.path(), {entry});
    CHECK_THROWS_WITH_AS(open_dataset(folder.path(), options), doctest::Contains("data-00000.h5: has"),
                         Error);
  }
  write_file(path, bytes);
  CHECK(same(read_all(*open_dataset(folder.path(), options)), original));
}

TEST_CASE("a manifest is not trusted either") {
  const TemporaryDirectory folder(memory_folder());
  const DatasetOptions options{16, 0, true, "", false};
  const ShardEntry entry =
      write_shard(folder / "data-00000.h5", random_documents(2, 9, 30), 16, Packing::stream);
  const auto refused = [&](const std::string& text, const char* why) {
    write_file(folder / kManifestName, text);
    CAPTURE(text);
    CHECK_THROWS_WITH_AS(open_dataset(folder.path(), options), doctest::Contains(why), Error);
  };
  for (const char* name : {"../data-00000.h5", "a/b", "..", "", ".hidden", "/etc/passwd"}) {
    ShardEntry other = entry;
    other.file = name;
    refused(Json{{"shards", {to_json(other)}}}.dump(), "bare name");
  }
  refused("{\"shards\":[{\"file\":\"data-00000.h5\",\"bytes\":-1}]}", "whole number");
  refused("{\"shards\":[{\"file\":7}]}", "wanted a string");
  refused("{\"shards\":[7]}", "wanted a JSON object");
  refused("{\"shards\":{}}", "not a list");
  refused("{\"shards\":", "not valid JSON");
  write_manifest(folder.path(), {entry, entry});
  CHECK_THROWS_WITH_AS(open_dataset(folder.path(), options), doctest::Contains("lists 2"), Error);
  write_file(folder / kManifestName, "{\"post-process\":{}}");  // as Cerebras writes it: no hashes
  CHECK(open_dataset(folder.path(), options)->size() == entry.n_examples);
}
