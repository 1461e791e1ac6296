#include "base/foreign_format.h"

#include "base/error.h"

namespace sinklora {
namespace {

using namespace std::string_view_literals;

struct Format {
  std::string_view begins, name, remedy;
};
constexpr std::string_view kDecompress = "decompress it first";
constexpr std::string_view kPandas =
    "write it as JSON lines first (pandas.read_parquet(...).to_json(..., orient=\"records\", lines=True))";
constexpr std::string_view kDatasets =
    "write it as JSON lines first (datasets.Dataset.from_file(...).to_json(...))";
constexpr Format kFormats[] = {
    {"\x1f\x8b\x08"sv, "gzip", kDecompress},
    {"\x28\xb5\x2f\xfd"sv, "zstd", kDecompress},
    {"\xfd\x37zXZ\0"sv, "xz", kDecompress},
    {"PK\3\4"sv, "a zip archive", "unpack it first"},
    // The byte behind the name begins the first structure of every such file, and no text has it.
    {"PAR1\x15"sv, "parquet", kPandas},
    {"ARROW1\0"sv, "arrow", kDatasets},
    {"\xff\xff\xff\xff"sv, "arrow", kDatasets},  // of the kind that streams, as Hugging Face's datasets
    {"MMIDIDX\0\0"sv, "Megatron's index", "the tokens are in the .bin beside it"},
    {kGitLfsPointer, "a Git LFS pointer to the file", "run git lfs pull"},
};

}  // namespace

void refuse_foreign_format(std::string_view head, const std::string& source) {
  for (const Format& format : kFormats)
    if (head.starts_with(format.begins))
      fail_input("{}: looks like {}: {}", source, format.name, format.remedy);
}

}  // namespace sinklora
