#include "model/expected_directory.h"

#include <algorithm>
#include <fstream>

#include "base/error.h"

namespace sinklora {
namespace fs = std::filesystem;
namespace {

// What cannot be looked at is passed over: opening it tells.
bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

std::string first_line(const fs::path& path) {
  std::string line;
  std::getline(std::ifstream(path), line);
  return line;
}

// Names in `directory` that end so, in order.
std::vector<std::string> names_with(const fs::path& directory, const std::string& extension) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error))
    if (entry.path().extension() == extension) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// The folder right below `directory` that holds `file`; `preferred` if it does, else the first; "" for none.
fs::path folder_with(const fs::path& directory, const std::string& file, const std::string& preferred = "") {
  if (!preferred.empty() && is_there(directory / preferred / file)) return directory / preferred;
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error))
    if (is_there(entry.path() / file)) found.push_back(entry.path());
  return found.empty() ? fs::path() : *std::min_element(found.begin(), found.end());
}

// Hugging Face's download cache: models--OWNER--NAME holds snapshots/REVISION, and refs/main names the newest.
void expect_no_cache_root(const fs::path& directory, const std::string& file) {
  const fs::path plain = (directory / "").parent_path();  // without a slash at its end
  const bool inside = plain.filename() == "snapshots";
  const fs::path snapshots = inside ? plain : plain / "snapshots";
  const fs::path snapshot = folder_with(snapshots, file, first_line(snapshots.parent_path() / "refs/main"));
  if (!snapshot.empty())
    fail_input("{}: is a folder of the download cache: give {}, which holds the files", directory.string(),
               snapshot.string());
}

void expect_directory(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) fail_input("{}: does not exist", path.string());
  if (fs::is_regular_file(path, error))
    fail_input("{}: is a file: give the directory that holds it, {}", path.string(),
               path.has_parent_path() ? path.parent_path().string() : ".");
}

[[noreturn]] void fail_on_gguf(const fs::path& file) {
  fail_input(
      "{}: GGUF, the format of llama.cpp, is not read; take the model that it was made from, or convert it "
      "once in Python: AutoModelForCausalLM.from_pretrained(DIR, gguf_file=\"{}\").save_pretrained(NEW)",
      file.string(), file.filename().string());
}

void expect_no_adapter(const fs::path& directory) {
  if (is_there(latest_checkpoint(directory) / "adapter_config.json"))
    fail_input("{}: is an adapter: give it as --adapter, with its base as --model", directory.string());
}

void expect_no_gguf(const fs::path& directory) {
  if (const auto names = names_with(directory, ".gguf"); !names.empty())
    fail_on_gguf(directory / names.front());
}

}  // namespace

fs::path latest_checkpoint(const fs::path& directory) {
  const std::string name = first_line(directory / kLatestName);
  return name.empty() ? directory : directory / name;
}

void expect_model_directory(const fs::path& directory) {
  std::error_code error;  // one other than "is not there": opening the file will tell
  if (fs::exists(directory / "config.json", error) || error) return;
  const std::string name = directory.string();
  if (directory.extension() == ".gguf" && fs::is_regular_file(directory, error)) fail_on_gguf(directory);
  expect_directory(directory);
  expect_no_adapter(directory);
  if (const fs::path checkpoint = latest_checkpoint(directory); is_there(checkpoint / "config.json"))
    fail_input("{}: is a run: give its checkpoint {} as --model", name, checkpoint.string());
  expect_no_cache_root(directory, "config.json");
  expect_no_gguf(directory);
  if (is_there(directory / "params.json"))
    fail_input(
        "{}: is a model in Meta's own format (params.json); take its Hugging Face form, which has "
        "config.json and model*.safetensors",
        name);
  fail_input("{}: holds no config.json; wanted a Hugging Face LLaMA directory", name);
}

void expect_adapter_directory(const fs::path& directory) {
  constexpr const char* file = "adapter_config.json";
  std::error_code error;
  if (fs::exists(directory / file, error) || error) return;
  const std::string name = directory.string();
  if (is_there(directory / "config.json"))
    fail_input("{}: is no adapter but a model (of a run that trained every weight?): give it as --model",
               name);
  expect_directory(directory);
  expect_no_cache_root(directory, file);
  // PEFT saves adapters that were given a name in folders of these names.
  if (const fs::path folder = folder_with(directory, file); !folder.empty())
    fail_input("{}: holds no {}, but its folder {} does: give {}", name, file, folder.filename().string(),
               folder.string());
  fail_input("{}: holds no {}; wanted a PEFT adapter", name, file);
}

void fail_without_weights(const fs::path& directory) {
  const std::string name = directory.string();
  expect_no_adapter(directory);  // which may have its base's config.json beside it
  if (is_there(directory / "pytorch_model.bin") || is_there(directory / "pytorch_model.bin.index.json"))
    fail_input(
        "{}: only pickled weights (pytorch_model.bin), which are never read here; convert them once in "
        "Python: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW, safe_serialization=True)",
        name);
  const std::vector<std::string> others = names_with(directory, ".safetensors");
  if (others.size() == 1 && others.front().starts_with("consolidated"))
    fail_input(
        "{}: only {}, which names the tensors otherwise; take the model*.safetensors of its repository", name,
        others.front());
  if (others.size() == 1)
    fail_input("{}: model.safetensors is not there: rename {}, if it is the whole model", name,
               others.front());
  if (others.size() > 1)
    fail_input(
        "{}: model.safetensors.index.json is not there, which says what {} and the {} others hold; take it "
        "from its repository as well",
        name, others.front(), others.size() - 1);
  expect_no_gguf(directory);
  fail_input("{}: neither model.safetensors nor model.safetensors.index.json is there", name);
}

void expect_plain_names(const SafetensorsFile& file) {
  for (const TensorInfo& info : file.tensors()) {
    if (info.name.find("_orig_mod.") != std::string::npos)
      fail_input(
          "{}: torch.compile has put \"_orig_mod.\" into the names of the tensors: save the model that was "
          "compiled (model._orig_mod.save_pretrained(NEW)), or take it out of the names",
          file.path().string());
    const size_t lora = std::min(info.name.find(".lora_A."), info.name.find(".lora_B."));
    if (lora == std::string::npos || !info.name.ends_with(".weight")) continue;
    if (const std::string tail = info.name.substr(lora + 1);
        tail.size() > std::string("lora_A.weight").size())
      fail_input(
          "{}: the names of the tensors hold the adapter's own (\"{}\"), as state_dict() has them: save it "
          "by PEFT's model.save_pretrained(), or take it out of the names",
          file.path().string(), tail);
  }
}

}  // namespace sinklora
