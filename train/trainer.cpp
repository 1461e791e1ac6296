#include "train/trainer.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <climits>
#include <cmath>
#include <csignal>
#include <ctime>
#include <optional>

#include "base/files.h"
#include "base/format.h"
#include "data/tokenizer.h"
#include "eval/perplexity.h"
#include "model/checksums.h"
#include "train/checkpoint.h"
#include "train/data_parallel.h"
#include "train/environment.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/plan.h"
#include "train/plot.h"
#include "train/utilization.h"

namespace sinklora {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kMostSkips = 10;  // non-finite steps in a row before a run that skips them gives up

// A signal handler may only set flags; the loop looks at them between steps. One wish may come as many signals: a
// closed terminal hangs up twice, a rank hears its launcher beside the sender, Slurm warns and then ends. Only
// Ctrl-C once more, later than any such copy, asks for an end without a save.
volatile std::sig_atomic_t stop_signal = 0;
std::atomic<int64_t> first_interrupt{0};  // milliseconds; 0: none
static_assert(std::atomic<int64_t>::is_always_lock_free);
constexpr int64_t kSameInterrupt = 1000;  // milliseconds
void note_signal(int signal) {
  if (stop_signal == 0) stop_signal = signal;
  if (signal != SIGINT) return;
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  const int64_t now = 1 + time.tv_sec * 1000 + time.tv_nsec / 1000000;
  int64_t before = 0;
  if (!first_interrupt.compare_exchange_strong(before, now) && now - before >= kSameInterrupt)
    ::_exit(128 + signal);
}

class SignalGuard {
 public:
  SignalGuard() {
    stop_signal = 0;
    first_interrupt = 0;
    for (size_t i = 0; i < kSignals.size(); ++i) before_[i] = std::signal(kSignals[i], note_signal);
    if (before_[0] == SIG_IGN) std::signal(kSignals[0], SIG_IGN);  // nohup
  }
  ~SignalGuard() {
    if (stop_signal != 0) return;  // a late copy must not end a run that has saved
    for (size_t i = 0; i < kSignals.size(); ++i) std::signal(kSignals[i], before_[i]);
  }

 private:
  static constexpr std::array kSignals{SIGHUP, SIGTERM, SIGINT, SIGUSR1};
  void (*before_[kSignals.size()])(int);
};

// Nobody reads the console any more: train.log has it all.
class PipeGuard {
 public:
  PipeGuard() : before_(std::signal(SIGPIPE, SIG_IGN)) {}
  ~PipeGuard() { std::signal(SIGPIPE, before_); }

 private:
  void (*before_)(int);
};

void prepare_output(const TrainOptions& options) {
  // Of what a save adds: "/.tmp-step-.../.tmp-model-00001-of-00002.safetensors-..."
  constexpr size_t kLongest = 100;
  if (options.out.string().size() + kLongest >= PATH_MAX)
    fail_usage("--out: a path of {} characters; the names of its files leave {} at most",
               options.out.string().size(), PATH_MAX - 1 - kLongest);
  std::error_code error;
  fs::create_directories(options.out, error);
  if (error) fail_usage("--out {}: cannot create: {}", options.out.string(), error.message());
  for (const char* file : {"config.json", "adapter_config.json", "data_params.json"})
    if (fs::exists(options.out / file))
      fail_usage("--out {}: holds a {}, so it is a model, an adapter or a dataset; choose another directory",
                 options.out.string(), file);
  if (::access(options.out.c_str(), W_OK) != 0) fail_usage("--out {}: not writable", options.out.string());
  if (options.resume == "never" && holds_run(options.out))
    fail_usage("--out {}: holds a run already and --resume is never; choose another directory",
               options.out.string());
}

// Most data tells in its first sample; nothing would be learned, or a run end in its first evaluation.
void expect_scored(const Dataset& data, const char* option, const fs::path& path) {
  for (int64_t i = 0; i < data.size(); ++i)
    for (const int32_t target : data.read(i).targets)
      if (target != kNotScored) return;
  fail_input("{} {}: no token of it is scored; look at its mask with `sinklora inspect`", option,
             path.string());
}

class Trainer {
 public:
  Trainer(const TrainOptions& options, Ops& ops, Communicator& ranks)
      : options_(options), setup_(resolve(options)), ops_(ops), ranks_(ranks) {
    setup_.model.base_ranks = options.shard_base ? ranks.world_size() : 1;
    tokenizer_hash_ = tokenizer_hash(options.model);
    const DatasetOptions dataset{options.context, setup_.config.vocab_size, options.separate_documents,
                                 tokenizer_hash_, options.force_tokenizer};
    data_ = open_dataset(options.data, dataset);
    expect_scored(*data_, "--data", options.data);
    if (!options.eval_data.empty()) {
      eval_data_ = open_dataset(options.eval_data, dataset);
      expect_scored(*eval_data_, "--eval-data", options.eval_data);
    }
    setup_.most_documents = std::max(data_->most_documents(), eval_data_ ? eval_data_->most_documents() : 1);
    fingerprint_ = fingerprint(options, weights_identity(options.model), data_->hash(), ranks.world_size());
    const int64_t samples_per_step = options.batch * options.accumulate * ranks.world_size();
    steps_ = options.steps > 0
                 ? options.steps
                 : static_cast<int64_t>(std::ceil(options.epochs * static_cast<double>(data_->size()) /
                                                  static_cast<double>(samples_per_step) * (1 - 1e-12)));
  }

  ExitCode run() try {
    const PipeGuard pipe;
    build_model();
    agree_on_run(ranks_, fingerprint_,
                 {{"version", SINKLORA_VERSION},
                  {"device", options_.device},
                  {"vocabulary", fmt::format("{} {}", setup_.config.vocab_size, tokenizer_hash_)},
                  {"trained parameters", std::to_string(model_->weights().trained_elements())},
                  {"steps", std::to_string(steps_)},
                  {"batch", std::to_string(options_.batch)},
                  {"eval data", eval_data_ ? eval_data_->hash() : "none"},
                  {"eval every", std::to_string(options_.eval_every)},
                  {"check every", std::to_string(options_.check_every)},
                  {"shard base", std::to_string(options_.shard_base)},
                  {"on non-finite", options_.on_nonfinite}});
    if (first_rank()) resume();
    ranks_.barrier();
    ranks_.leave_record_in(options_.out);  // from here on OUT is this run's
    share_state(ranks_, model_->weights(), state_);
    state_.planned_steps = steps_;
    const SignalGuard signals;
    bool stopped = make_steps();
    if (saved_step_ != state_.step) save();
    if (first_rank())
      write_plot(options_.out / "loss.svg", "training loss", "step", "loss (nats a token)", log_->losses());
    if (stopped)
      say("{}: saved step {}; run {} to go on\n",
          stop_signal != 0 ? fmt::format("signal {}", static_cast<int>(stop_signal))
                           : "signal to another rank",
          state_.step, going_on_);
    else if (eval_data_ && evaluated_step_ != state_.step && !evaluate())
      stopped = true;
    ranks_.barrier();  // no rank ends, and makes a launcher end the others, before rank 0 has saved
    if (!stopped && state_.updates == 0 && skips_ > 0)
      fail(ExitCode::non_finite, "{}: all {} steps were skipped, so that nothing was trained",
           options_.out.string(), state_.step);
    if (!stopped && state_.updates == 0)
      fail_input(
          "--data {}: none of the {} steps had a scored token, so that nothing was trained; make more "
          "steps",
          options_.data.string(), state_.step);
    const fs::path plot = options_.out / "loss.svg";
    if (!stopped)
      say("done: {}{}\n", (options_.out / step_directory_name(state_.step)).string(),
          fs::exists(plot) ? " and " + plot.string() : "");
    if (!stopped) say("{}", note_for_peft(options_, setup_.config));
    return stopped ? ExitCode::preempted : ExitCode::ok;
  } catch (const std::exception& error) {
    // A refusal, a full disk or a NaN says all in its words; only calls that went wrong need records.
    if (const auto* known = dynamic_cast<const Error*>(&error); known && known->code < ExitCode::communicator)
      ranks_.leave_record_in({});
    // While the memory of calls under way still lives.
    ranks_.abort(error.what());
    try {
      ranks_.finish();
    } catch (const std::exception&) {  // the one above says more
    }
    throw;
  }

 private:
  // Into OUT/train.log, and to the console unless the run is quiet.
  template <class... Args>
  void say(fmt::format_string<Args...> format, Args&&... args) {
    if (!first_rank()) return;
    const std::string text = fmt::format(format, std::forward<Args>(args)...);
    if (!console_) console_.emplace(options_.out / "train.log");
    console_->write(text);
    if (options_.quiet) return;
    std::fputs(text.c_str(), stdout);
    if (std::fflush(stdout) != 0) std::clearerr(stdout);  // train.log has it: no reason to fail
  }

  bool first_rank() const { return ranks_.rank() == 0; }

  bool evaluates_here() const {
    return eval_data_ && options_.eval_every > 0 && state_.step % options_.eval_every == 0;
  }

  // Whether the run was ended while it evaluated the step that it has resumed from.
  bool evaluation_is_due() {
    if (state_.step == 0 || !evaluates_here()) return false;
    double due = 0;
    if (first_rank()) {
      int64_t last = 0;
      lines_up_to(options_.out / "eval.jsonl", state_.step,
                  [&](const Json& line) { last = line.value("step", int64_t{0}); });
      due = last < state_.step ? 1 : 0;
    }
    ranks_.sum_on_host({&due, 1});
    return due > 0;
  }

  // Whether a signal ended them.
  bool make_steps() {
    if (first_rank()) {
      log_.emplace(options_.out, state_.step);
      if (goes_on_ && log_->last_step() < state_.step)
        say("           metrics.jsonl has no lines of the steps after {}: they are lost\n",
            log_->last_step());
      peak_ = peak_operations(options_.device, options_.precision, options_.device_index);
    }
    Loader loader(*data_, {options_.batch, options_.accumulate, static_cast<uint64_t>(options_.seed),
                           options_.shuffle, ranks_.rank(), ranks_.world_size(), state_.position});
    GradientSum sum_gradients(ranks_, model_->weights());
    saved_step_ = first_step_ = state_.step;
    if (evaluation_is_due()) evaluate();
    started_ = std::chrono::steady_clock::now();
    while (state_.step < steps_) {
      const std::optional<StepMetrics> metrics = step(loader, sum_gradients);
      if (!metrics) return true;
      if (log_) log_->write(*metrics);
      if (metrics->step % options_.log_every == 0 || metrics->step == steps_) print_step(*metrics);
      if (options_.check_every > 0 && state_.step % options_.check_every == 0 && ranks_.world_size() > 1)
        check_drift(ranks_, ops_, model_->weights(), state_.step);
      if ((options_.save_every > 0 && state_.step % options_.save_every == 0) || asked_to_save()) save();
      if (evaluates_here()) evaluate();
    }
    return false;
  }

  void build_model() {
    const MemoryPlan plan = plan_memory(options_, setup_, ops_);
    if (!plan.fits())
      fail(ExitCode::does_not_fit,
           "this run needs {}, {} are available; `sinklora plan` with the same options says where it goes",
           format_bytes(static_cast<double>(plan.total)), format_bytes(static_cast<double>(plan.available)));
    model_ = std::make_unique<Llama>(ops_, setup_.config, setup_.model,
                                     pass_options(options_, setup_, plan.recompute));
    model_->allocate();
    model_->weights().base.connect(ranks_);
    const auto seed = static_cast<uint64_t>(options_.seed);
    if (options_.init == "random") {
      model_->weights().initialize(ops_, seed);
    } else {
      const ModelDirectory directory(options_.model);
      directory.verify_sums();
      model_->weights().load(ops_, directory);
    }
    model_->weights().initialize_adapters(ops_, seed);
    say("model      {} ({} layers, hidden {}, {} heads / {} KV heads of {}), RoPE {}\n",
        options_.model.string(), setup_.config.num_layers, setup_.config.hidden_size, setup_.config.num_heads,
        setup_.config.num_kv_heads, setup_.config.head_dim, describe(setup_.config.rope));
    say("attention  {}\n", describe(options_.attention, setup_.pattern, setup_.config.num_heads));
    say("training   {}: {} parameters\n", options_.trainable,
        format_count(static_cast<double>(model_->weights().trained_elements())));
    say("data       {}\n", data_->describe());
    const int64_t samples = options_.accumulate * options_.batch * ranks_.world_size();
    say("steps      {} of {} x {} samples{} ({:.2f} epochs)\n", steps_, options_.accumulate, options_.batch,
        ranks_.world_size() > 1 ? fmt::format(" on each of {} ranks", ranks_.world_size()) : "",
        static_cast<double>(steps_ * samples) / static_cast<double>(data_->size()));
    if (ranks_.world_size() > 1 && data_->size() % samples != 0)
      say("           {} samples are no multiple of {}: all ranks make equally many steps, and one that an "
          "epoch "
          "does not fill goes on with the next\n",
          data_->size(), samples);
    if (options_.shard_base)
      say("base       {}\n", ranks_.world_size() > 1
                                 ? fmt::format("each rank keeps a share of 1/{}", ranks_.world_size())
                                 : "one rank shares with nobody: --shard-base changes nothing");
    say("memory     {} of {}; {}\n\n", format_bytes(static_cast<double>(plan.total)),
        format_bytes(static_cast<double>(plan.available)),
        describe(plan.recompute, setup_.config.num_layers));
  }

  void resume() {
    remove_unfinished(options_.out);
    const Beginning beginning = find_beginning(options_);
    const auto& [checkpoint, newest] = beginning;
    if (checkpoint) {
      state_ = load_checkpoint(*checkpoint, ops_, model_->weights(), setup_.config, fingerprint_);
      // A run that has gone back would, once interrupted, go on from what it had left behind.
      if (newest && step_of(*newest) > state_.step)
        fail_usage(
            "--resume {}: --out holds {}, which is newer; go on from that one with --resume auto, move it "
            "away, or choose another --out",
            checkpoint->string(), newest->string());
      goes_on_ = newest.has_value();
      if (newest) settle_checkpoints(options_, step_of(*newest), step_of(*newest));
      say("resuming   {} at step {}\n", checkpoint->string(), state_.step);
      if (state_.planned_steps > 0 && state_.planned_steps != steps_ && options_.schedule != "constant")
        say("           the {} schedule ended at step {} and now ends at {}: the learning rate changes from "
            "here on\n",
            options_.schedule, state_.planned_steps, steps_);
    }
    going_on_ = options_.resume == "never" || (goes_on_ && *checkpoint == options_.resume)
                    ? "the same command with --resume auto"
                    : "the same command again";
    if (state_.step >= steps_) return;                        // nothing will be done with these options
    expect_room_for_checkpoint(options_, model_->weights());  // rather now than after the steps
    note_beginning(options_, beginning);
    if (!options_.resolved_config.empty())
      write_text_atomically(options_.out / "run.toml", options_.resolved_config);
    write_json(options_.out / "env.json", environment());
  }

  // Nothing is done, and nothing returned, once a rank has been told to stop.
  std::optional<StepMetrics> step(Loader& loader, GradientSum& sum_gradients) {
    const auto begin = std::chrono::steady_clock::now();
    const std::vector<Batch> batches = loader.next();
    std::array<double, 3> counts{0, 0, stop_signal != 0 ? 1.0 : 0.0};  // whole numbers below 2^53: exact sums
    for (const Batch& batch : batches) {
      counts[0] += static_cast<double>(batch.scored_tokens);
      counts[1] += static_cast<double>(batch.tokens());
    }
    ranks_.sum_on_host(counts);
    const auto [scored, tokens, stops] = counts;
    if (stops > 0) return std::nullopt;

    StepMetrics metrics;
    metrics.step = state_.step + 1;
    metrics.epoch = loader.epoch();
    metrics.learning_rate =
        learning_rate(options_.schedule, options_.learning_rate, metrics.step, options_.warmup, steps_);
    if (scored > 0) {
      metrics.loss = gradients_of(batches, scored, sum_gradients) / scored;
      metrics.grad_norm = gradient_norm(ops_, model_->weights());
    }
    metrics.skipped = scored == 0 || !update(metrics, batches);
    state_.step += 1;
    state_.position = loader.position();
    state_.tokens += std::llround(tokens);
    metrics.tokens = state_.tokens;
    metrics.step_ms = 1000 * std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    metrics.tokens_per_s = 1000 * tokens / metrics.step_ms;
    if (peak_) {
      double operations = 0;
      for (const Batch& batch : batches)
        operations += model_operations(setup_.config, setup_.pattern, batch.offsets, setup_.model.train_all);
      metrics.mfu = 1000 * operations / (metrics.step_ms * *peak_);
    }
    metrics.mem_gib = memory_gib(options_.device, options_.device_index, options_.free_memory);
    return metrics;
  }

  // Of the mean over the scored tokens of all ranks. Returns the sum of their losses.
  double gradients_of(const std::vector<Batch>& batches, double scored, GradientSum& sum_gradients) {
    model_->zero_gradients();
    const GradientsReady ready = [&](int64_t first_byte) { sum_gradients.ready_from(first_byte); };
    double sum = 0;
    // All ranks make the calls of equally many passes in the same order, whatever is scored in theirs.
    for (const Batch& batch : batches) {
      const GradientsReady heard = &batch == &batches.back() ? ready : GradientsReady();
      if (batch.scored_tokens > 0)
        sum += model_->accumulate_gradients(batch, setup_.pattern, 1.0 / scored, heard);
      else
        model_->accompany_gradients(heard);
    }
    sum_gradients.finish();
    ranks_.sum_on_host({&sum, 1});
    return sum;
  }

  // The same on all ranks, which hold the same numbers. False when the step is left out because its numbers
  // are not finite.
  bool update(const StepMetrics& metrics, const std::vector<Batch>& batches) {
    if (!std::isfinite(metrics.loss) || !std::isfinite(metrics.grad_norm)) {
      const std::string what = fmt::format("step {}: loss {}, gradient norm {}; samples of {}", metrics.step,
                                           metrics.loss, metrics.grad_norm, samples_of_all(ranks_, batches));
      if (options_.on_nonfinite == "stop" || ++skips_ >= kMostSkips)
        fail(ExitCode::non_finite,
             "{}. Nothing was updated; lower --lr, look at these samples, or use --on-nonfinite skip", what);
      if (first_rank()) fmt::print(stderr, "{}: skipped\n", what);
      return false;
    }
    skips_ = 0;
    // As torch's clip_grad_norm_ has it, its small constant included.
    const double clip =
        options_.grad_clip > 0 ? std::min(1.0, options_.grad_clip / (metrics.grad_norm + 1e-6)) : 1.0;
    state_.updates += 1;
    update_parameters(ops_, model_->weights(),
                      {metrics.learning_rate, options_.beta1, options_.beta2, options_.epsilon,
                       options_.weight_decay, state_.updates, clip});
    return true;
  }

  void print_step(const StepMetrics& metrics) {
    const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
    const double a_step = elapsed / static_cast<double>(std::max<int64_t>(1, metrics.step - first_step_));
    say("{}\n", console_line(metrics, steps_, a_step * static_cast<double>(steps_ - metrics.step)));
  }

  // False when a signal ended it: then nothing is written of it.
  bool evaluate() {
    const Perplexity result = perplexity_blocks(*model_, *eval_data_, AttentionPattern{}, options_.context,
                                                {.batch = options_.batch,
                                                 .ranks = &ranks_,
                                                 .stop = [] { return stop_signal != 0; },
                                                 .data = options_.eval_data.string()});
    if (result.stopped) {
      say("stopped while evaluating step {}; run {} to go on\n", state_.step, going_on_);
      return false;
    }
    say("eval  step {} | blocks, full attention, context {} | nll {:.5f} | ppl {:.3f}\n", state_.step,
        options_.context, result.nll, result.ppl);
    evaluated_step_ = state_.step;
    if (!first_rank()) return true;
    const Json line{{"step", state_.step},     {"nll", result.nll},         {"ppl", result.ppl},
                    {"tokens", result.tokens}, {"windows", result.windows}, {"context", options_.context}};
    const fs::path path = options_.out / "eval.jsonl";  // one line a step, whatever was gone back to
    write_text_atomically(path, lines_up_to(path, state_.step - 1) + line.dump() + "\n");
    return true;
  }

  // Rank 0 has everything that goes into a checkpoint; the others wait for it in the next step.
  void save() {
    if (first_rank()) {
      log_->sync();  // no checkpoint whose steps have no lines
      save_checkpoint(options_, ops_, model_->weights(), setup_.config, state_, fingerprint_);
      settle_checkpoints(options_, saved_step_, state_.step);
    }
    saved_step_ = state_.step;
  }

  bool asked_to_save() {
    const fs::path trigger = options_.out / "save-now";
    std::error_code error;
    if (!first_rank() || ignores_trigger_ || !fs::remove(trigger, error)) {
      if (error) {
        ignores_trigger_ = true;
        say("{}: cannot be removed ({}), and is ignored from here on\n", trigger.string(), error.message());
      }
      return false;
    }
    say("saving step {} because of {}\n", state_.step, trigger.string());
    return true;
  }

  const TrainOptions& options_;
  TrainSetup setup_;
  Ops& ops_;
  Communicator& ranks_;
  std::string tokenizer_hash_;
  std::unique_ptr<Dataset> data_, eval_data_;
  Json fingerprint_;
  int64_t steps_ = 0, first_step_ = 0, saved_step_ = 0, evaluated_step_ = -1, skips_ = 0;
  std::unique_ptr<Llama> model_;
  TrainState state_;
  bool ignores_trigger_ = false;
  std::string going_on_;               // what to run when this run is stopped
  bool goes_on_ = false;               // with a run that is in OUT
  std::optional<MetricsLog> log_;      // of rank 0
  std::optional<AppendFile> console_;  // of rank 0: train.log
  std::optional<double> peak_;         // operations a second of rank 0's GPU, where it is known
  std::chrono::steady_clock::time_point started_;
};

}  // namespace

ExitCode train(const TrainOptions& options, Ops& ops, Communicator& ranks) {
  std::optional<DirectoryLock> lock;  // two runs would remove each other's checkpoints
  std::unique_ptr<Trainer> trainer;
  try {  // first: nothing is loaded before it is known that results can be kept
    if (ranks.rank() == 0) {
      prepare_output(options);
      lock.emplace(options.out);
    }
    trainer = std::make_unique<Trainer>(options, ops, ranks);
  } catch (const std::exception& error) {
    ranks.abort(error.what());
    throw;
  }
  return trainer->run();
}

}  // namespace sinklora
