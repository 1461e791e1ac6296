#include "train/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <map>

#include "base/hash.h"
#include "base/json_fields.h"
#include "model/adapter_card.h"
#include "model/checksums.h"
#include "model/expected_directory.h"

namespace sinklora {
namespace fs = std::filesystem;
namespace {

constexpr const char* kStateFile = "state.json";
constexpr const char* kOriginFile = "resumed_from";  // in OUT: the hash of what --resume named
constexpr const char* kOptimizerFile = "optimizer.safetensors";

std::vector<fs::path> checkpoints_newest_first(const fs::path& out) {
  std::map<int64_t, fs::path, std::greater<>> by_step;
  std::error_code missing;
  for (const auto& entry : fs::directory_iterator(out, missing))
    if (const int64_t step = step_of(entry.path()); step >= 0) by_step.emplace(step, entry.path());
  std::vector<fs::path> result;
  for (const auto& [step, path] : by_step) result.push_back(path);
  return result;
}

// A tensor whose bytes are fetched from the backend when the file is written.
TensorSource source_of(Ops& ops, const std::string& name, const Tensor& tensor) {
  return {name,
          DType::f32,
          {tensor.shape.begin(), tensor.shape.begin() + tensor.rank},
          [&ops, tensor](const auto& write) {
            const auto numbers = download_numbers<float>(ops, tensor);
            write(std::as_bytes(std::span(numbers)));
          }};
}

void write_weights(const fs::path& folder, const TrainOptions& options, Ops& ops, const Weights& weights,
                   LlamaConfig config, const std::string& base) {
  if (options.trainable != "full") {
    write_adapter(folder, weights.adapter(ops), options.lora_alpha, options.model.string());
    write_run_info(folder, {config.rope, options.context, base});
    return;
  }
  config.max_positions = trained_reach(config, options.context);
  config.dtype = DType::f32;
  std::vector<TensorSource> tensors;
  for (const Parameter& parameter : weights.parameters)
    tensors.push_back(source_of(ops, parameter.name, parameter.weight.master));
  write_model_directory(folder, config, tensors, options.model);
}

void write_moments(const fs::path& folder, Ops& ops, const Weights& weights) {
  std::vector<TensorSource> tensors;
  for (const Parameter& parameter : weights.parameters) {
    if (!parameter.trained()) continue;
    tensors.push_back(source_of(ops, parameter.name + ".exp_avg", parameter.weight.m));
    tensors.push_back(source_of(ops, parameter.name + ".exp_avg_sq", parameter.weight.v));
  }
  write_safetensors(folder / kOptimizerFile, tensors);
}

void remove_old(const fs::path& checkpoint) {
  // Renamed first: a half-deleted checkpoint must not be taken for one.
  const fs::path trash = checkpoint.parent_path() / (".trash-" + checkpoint.filename().string());
  std::error_code error;
  fs::rename(checkpoint, trash, error);
  if (!error) fs::remove_all(trash, error);
  if (error) fail_input("{}: cannot remove this old checkpoint: {}", checkpoint.string(), error.message());
}

void load_moment(Ops& ops, const SafetensorsFile& file, const std::string& name, const Tensor& to) {
  const TensorInfo* info = file.find(name);
  if (!info || info->elements() != to.size())
    fail_input("{}: tensor {} is missing or has another size; this checkpoint is of another run",
               file.path().string(), name);
  std::vector<float> numbers(static_cast<size_t>(to.size()));
  file.read(*info, 0, numbers);
  upload_numbers(ops, to, numbers);
}

// Equal runs have equal states: it tells the weights too.
std::string origin_of(const fs::path& checkpoint) { return sha256_of_file(checkpoint / kStateFile) + "\n"; }

void compare_fingerprints(const fs::path& checkpoint, const Json& saved, const Json& now) {
  for (const auto& [key, value] : now.items()) {
    // A model may have moved. Checkpoints from before weights were compared tell it by its path.
    if (key == (saved.contains("base weights") ? "model" : "base weights")) continue;
    if (!saved.contains(key) || saved[key] != value)
      fail_usage("{}: the saved run had {} = {}, this one has {}; use the same value, or another --out",
                 checkpoint.string(), key, saved.contains(key) ? saved[key].dump() : "nothing", value.dump());
  }
}

}  // namespace

std::string note_for_peft(const TrainOptions& options, const LlamaConfig& config) {
  const std::string remedy = options.trainable == "full" ? "" : rope_remedy(config);
  return remedy.empty() ? "" : remedy + "\n";
}

std::string step_directory_name(int64_t step) { return fmt::format("step-{:08}", step); }

int64_t step_of(const fs::path& directory) {
  const std::string name = directory.filename().string();
  if (!name.starts_with("step-")) return -1;
  int64_t step = -1;
  const auto [end, error] = std::from_chars(name.data() + 5, name.data() + name.size(), step);
  // Not "step-5": of two names for a step one would be that of no save.
  return error == std::errc{} && end == name.data() + name.size() && step_directory_name(step) == name ? step
                                                                                                       : -1;
}

void expect_room_for_checkpoint(const TrainOptions& options, const Weights& weights) {
  // The trained numbers and two moments, all f32; a tied head once more, for PEFT; names, settings, sums.
  int64_t needed = weights.gradients.bytes() * 3 + (int64_t{1} << 20);
  if (weights.tied() && options.trainable == "lora+") needed += 4 * weights.embedding.value.size();
  if (const auto room = free_bytes(options.out); room && *room < needed)
    fail_input("{}: a checkpoint needs {} bytes, the disk has {}; free some or choose another --out",
               options.out.string(), needed, *room);
}

void save_checkpoint(const TrainOptions& options, Ops& ops, const Weights& weights, const LlamaConfig& config,
                     const TrainState& state, const Json& fingerprint) {
  expect_room_for_checkpoint(options, weights);
  const fs::path path = options.out / step_directory_name(state.step);
  // There may be one of the run that this one resumed from, or a damaged one.
  AtomicDirectory folder(path, AtomicDirectory::Existing::replace);
  write_weights(folder.path(), options, ops, weights, config, fingerprint.at("base weights"));
  write_moments(folder.path(), ops, weights);
  const Json json{{"schema", "sinklora-checkpoint/1"}, {"step", state.step},
                  {"position", state.position},        {"tokens", state.tokens},
                  {"updates", state.updates},          {"planned_steps", state.planned_steps},
                  {"fingerprint", fingerprint}};
  write_json(folder.path() / kStateFile, json);
  write_sums(folder.path());
  if (options.trainable != "full")  // without a sum: an edited one is no damage
    write_adapter_card(folder.path(), options.model.string(), config, options.context);
  folder.commit();
}

void settle_checkpoints(const TrainOptions& options, int64_t before, int64_t step) {
  const std::string name = step_directory_name(step);
  if (latest_checkpoint(options.out) != options.out / name)
    write_text_atomically(options.out / kLatestName, name + "\n");
  int64_t kept = 0;
  for (const fs::path& path : checkpoints_newest_first(options.out)) {
    const int64_t its = step_of(path);
    if (its > step || options.keep_last <= 0)
      continue;  // beyond: damaged, or it would have been gone on from
    if ((its > before && its < step) || ++kept > options.keep_last) remove_old(path);
  }
}

void remove_unfinished(const fs::path& out) {
  remove_leftovers(out, {"step-", kLatestName, "metrics.jsonl", "loss.svg", "run.toml", "env.json",
                         "eval.jsonl", kOriginFile, "flight.rank"});
}

Beginning find_beginning(const TrainOptions& options) {
  const fs::path &out = options.out, named = options.resume;
  if (options.resume == "never") return {};
  if (options.resume == "auto") {
    const auto newest = newest_checkpoint(out);
    if (!newest && holds_checkpoints(out))
      fail_input(
          "--out {}: none of its checkpoints is whole, and a new run would overwrite its metrics; move it "
          "away, or choose another --out",
          out.string());
    if (!newest && fs::exists(out / kOriginFile))
      fail_usage(
          "--out {}: its run began with another's checkpoint and holds none of its own; name it again "
          "(--resume DIR, as in its run.toml), or choose another --out",
          out.string());
    return {newest, newest};
  }
  if (!fs::exists(named / kStateFile))
    fail_usage("--resume {}: no checkpoint (it holds no {}); give auto, never, a checkpoint or a run",
               named.string(), kStateFile);
  const bool begun = fs::exists(out / kOriginFile) && read_text(out / kOriginFile, 4096) == origin_of(named);
  const auto newest = newest_checkpoint(out);
  if (begun && newest) return {newest, newest};
  if (!begun && holds_run(out) && !fs::equivalent(named / "..", out))
    fail_usage(
        "--resume {}: --out {} holds a run that did not begin with it; go on with that one by --resume "
        "auto, or choose another --out",
        named.string(), out.string());
  verify_sums(named);
  return {named, newest};
}

void note_beginning(const TrainOptions& options, const Beginning& beginning) {
  if (beginning.newest) return;
  if (beginning.from)
    write_text_atomically(options.out / kOriginFile, origin_of(*beginning.from));
  else
    fs::remove(options.out / kOriginFile);  // of a run that came to no checkpoint
}

bool holds_run(const fs::path& out) { return fs::exists(out / "metrics.jsonl") || holds_checkpoints(out); }

bool holds_checkpoints(const fs::path& out) { return !checkpoints_newest_first(out).empty(); }

std::optional<fs::path> newest_checkpoint(const fs::path& out) {
  for (const fs::path& path : checkpoints_newest_first(out)) {
    try {
      verify_sums(path);
      const Json state =
          read_json(path / kStateFile);  // whatever else is wrong in it, load_checkpoint() says
      if (state.is_object() && state.value("step", Json(step_of(path))) != step_of(path))
        fail_input("it is of step {}, so it was copied or renamed; --resume takes it by its name",
                   state["step"].dump());
      return path;
    } catch (const Error& error) {
      fmt::print(stderr, "skipping {}: {}\n", path.string(), error.what());
    }
  }
  return std::nullopt;
}

TrainState load_checkpoint(const fs::path& checkpoint, Ops& ops, Weights& weights, const LlamaConfig& config,
                           const Json& fingerprint) {
  const std::string file = (checkpoint / kStateFile).string();
  const Json json = read_json(file);
  if (!json.is_object() || json.value("schema", Json()) != "sinklora-checkpoint/1")
    fail_input("{}: not a checkpoint of this program", file);
  // All of it before anything is loaded.
  const JsonFields fields(json, file);
  TrainState state;
  state.step = fields.integer("step", 0, INT64_MAX);
  state.position = fields.integer("position", 0, INT64_MAX);
  state.tokens = fields.integer("tokens", 0, INT64_MAX);
  state.updates = fields.integer_or("updates", state.step, 0, state.step);
  state.planned_steps = fields.integer_or("planned_steps", 0, 0, INT64_MAX);
  if (!fields.given("fingerprint")) fail_input("{}: fingerprint is missing", file);
  const JsonFields saved(json.at("fingerprint"), file + ": fingerprint");  // refuses what is no object
  compare_fingerprints(checkpoint, saved.json(), fingerprint);
  if (fs::exists(checkpoint / "adapter_config.json"))
    weights.load_adapter(ops, read_adapter(checkpoint, config));
  else
    weights.load(ops, ModelDirectory(checkpoint));
  const SafetensorsFile moments(checkpoint / kOptimizerFile);
  for (const Parameter& parameter : weights.parameters) {
    if (!parameter.trained()) continue;
    load_moment(ops, moments, parameter.name + ".exp_avg", parameter.weight.m);
    load_moment(ops, moments, parameter.name + ".exp_avg_sq", parameter.weight.v);
  }
  return state;
}

}  // namespace sinklora
