#include "train/trainer.h"

#include <unistd.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <numeric>

#include "base/progress.h"
#include "data/tokenizer.h"
#include "eval/perplexity.h"
#include "kernels/backend.h"
#include "train/checkpoint.h"
#include "train/metrics.h"
#include "train/optimizer.h"

namespace sinklora {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kMostSkips = 10;  // non-finite steps in a row before a run that skips them gives up

// A signal handler may only set a flag; the loop looks at it between steps.
volatile std::sig_atomic_t stop_signal = 0;
void note_signal(int signal) {
  if (stop_signal != 0) ::_exit(128 + signal);  // the second one is meant
  stop_signal = signal;
}

class SignalGuard {
 public:
  SignalGuard() {
    stop_signal = 0;
    for (size_t i = 0; i < 3; ++i) before_[i] = std::signal(kSignals[i], note_signal);
  }
  ~SignalGuard() {
    for (size_t i = 0; i < 3; ++i) std::signal(kSignals[i], before_[i]);
  }

 private:
  static constexpr int kSignals[] = {SIGTERM, SIGINT, SIGUSR1};
  void (*before_[3])(int);
};

// The tokenizer's fingerprint of a model directory, "" when it has none that can be read.
std::string tokenizer_hash(const fs::path& model) {
  try {
    return open_tokenizer(model)->sha256;
  } catch (const Error&) {
    return {};
  }
}

void prepare_output(const TrainOptions& options) {
  std::error_code error;
  fs::create_directories(options.out, error);
  if (error) fail_usage("--out {}: cannot create: {}", options.out.string(), error.message());
  if (::access(options.out.c_str(), W_OK) != 0) fail_usage("--out {}: not writable", options.out.string());
  if (options.resume == "never" && fs::exists(options.out / "metrics.jsonl"))
    fail_usage("--out {}: holds a run already and --resume is never; choose another directory",
               options.out.string());
}

class Trainer {
 public:
  explicit Trainer(const TrainOptions& options)
      : options_(options), setup_(resolve(options)), ops_(make_ops(options.device, options.precision)) {
    const DatasetOptions dataset{options.context, setup_.config.vocab_size, options.separate_documents,
                                 tokenizer_hash(options.model), options.force_tokenizer};
    data_ = open_dataset(options.data, dataset);
    if (!options.eval_data.empty()) eval_data_ = open_dataset(options.eval_data, dataset);
    fingerprint_ = fingerprint(options, data_->hash());
    const int64_t samples_per_step = options.batch * options.accumulate;
    steps_ = options.steps > 0
                 ? options.steps
                 : static_cast<int64_t>(std::ceil(options.epochs * static_cast<double>(data_->size()) /
                                                  static_cast<double>(samples_per_step)));
  }

  ExitCode run() {
    build_model();
    resume();
    const SignalGuard signals;
    MetricsLog log(options_.out, state_.step);
    Loader loader(*data_, {options_.batch, options_.accumulate, static_cast<uint64_t>(options_.seed),
                           options_.shuffle, 0, 1, state_.position});
    int64_t saved_step = state_.step;
    started_ = std::chrono::steady_clock::now();
    first_step_ = state_.step;
    while (state_.step < steps_ && stop_signal == 0) {
      const StepMetrics metrics = step(loader);
      log.write(metrics);
      if (metrics.step % options_.log_every == 0 || metrics.step == steps_) print_step(metrics);
      if (options_.eval_every > 0 && eval_data_ && state_.step % options_.eval_every == 0) evaluate();
      if (options_.save_every > 0 && state_.step % options_.save_every == 0) save(), saved_step = state_.step;
    }
    if (saved_step != state_.step) save();
    write_plot(options_.out / "loss.svg", "training loss", "step", "loss (nats a token)", log.losses());
    if (stop_signal != 0) {
      say("signal {}: saved step {}; run the same command again to go on\n", static_cast<int>(stop_signal),
          state_.step);
      return ExitCode::preempted;
    }
    if (eval_data_) evaluate();
    say("done: {} and {}\n", (options_.out / step_directory_name(state_.step)).string(),
        (options_.out / "loss.svg").string());
    return ExitCode::ok;
  }

 private:
  // Prints to the console unless the run is quiet.
  template <class... Args>
  void say(fmt::format_string<Args...> format, Args&&... args) const {
    if (options_.quiet) return;
    fmt::print(format, std::forward<Args>(args)...);
    std::fflush(stdout);
  }

  void build_model() {
    const MemoryPlan plan = plan_memory(options_, setup_, *ops_);
    if (!plan.fits())
      fail(ExitCode::does_not_fit,
           "this run needs {}, {} are available; `sinklora plan` with the same options says where it goes",
           format_bytes(static_cast<double>(plan.total)), format_bytes(static_cast<double>(plan.available)));
    model_ = std::make_unique<Llama>(*ops_, setup_.config, setup_.model,
                                     pass_options(options_, setup_, plan.recompute));
    model_->allocate();
    const auto seed = static_cast<uint64_t>(options_.seed);
    if (options_.init == "random")
      model_->weights().initialize(*ops_, seed);
    else
      model_->weights().load(*ops_, ModelDirectory(options_.model));
    model_->weights().initialize_adapters(*ops_, seed);
    say("model      {} ({} layers, hidden {}, {} heads / {} KV heads of {}), RoPE {}\n",
        options_.model.string(), setup_.config.num_layers, setup_.config.hidden_size, setup_.config.num_heads,
        setup_.config.num_kv_heads, setup_.config.head_dim, describe(setup_.config.rope));
    say("attention  {}\n", describe(options_.attention, setup_.pattern, setup_.config.num_heads));
    say("training   {}: {} parameters\n", options_.trainable,
        format_count(static_cast<double>(model_->weights().trained_elements())));
    say("data       {}\n", data_->describe());
    say("steps      {} of {} x {} samples ({:.2f} epochs)\n", steps_, options_.accumulate, options_.batch,
        static_cast<double>(steps_ * options_.accumulate * options_.batch) /
            static_cast<double>(data_->size()));
    say("memory     {} of {}; {}\n\n", format_bytes(static_cast<double>(plan.total)),
        format_bytes(static_cast<double>(plan.available)),
        describe(plan.recompute, setup_.config.num_layers));
  }

  void resume() {
    std::optional<fs::path> checkpoint;
    if (options_.resume == "auto") {
      checkpoint = newest_checkpoint(options_.out);
    } else if (options_.resume != "never") {
      checkpoint = options_.resume;
      verify_checkpoint(*checkpoint);
    }
    if (checkpoint) {
      state_ = load_checkpoint(*checkpoint, *ops_, model_->weights(), setup_.config, fingerprint_);
      say("resuming   {} at step {}\n", checkpoint->string(), state_.step);
    }
    if (!options_.resolved_config.empty())
      write_text_atomically(options_.out / "run.toml", options_.resolved_config);
  }

  StepMetrics step(Loader& loader) {
    const auto begin = std::chrono::steady_clock::now();
    const std::vector<Batch> batches = loader.next();
    int64_t scored = 0, tokens = 0;
    for (const Batch& batch : batches) scored += batch.scored_tokens, tokens += batch.tokens();

    StepMetrics metrics;
    metrics.step = state_.step + 1;
    metrics.epoch = loader.epoch();
    metrics.learning_rate =
        learning_rate(options_.schedule, options_.learning_rate, metrics.step, options_.warmup, steps_);
    if (scored > 0) {
      model_->zero_gradients();
      double sum = 0;
      for (const Batch& batch : batches)
        if (batch.scored_tokens > 0)
          sum += model_->accumulate_gradients(batch, setup_.pattern, 1.0 / static_cast<double>(scored));
      metrics.loss = sum / static_cast<double>(scored);
      metrics.grad_norm = gradient_norm(*ops_, model_->weights());
    }
    metrics.skipped = scored == 0 || !update(metrics, batches);
    state_.step += 1;
    state_.position = loader.position();
    state_.tokens += tokens;
    metrics.tokens = state_.tokens;
    metrics.step_ms = 1000 * std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    metrics.tokens_per_s = 1000 * static_cast<double>(tokens) / metrics.step_ms;
    metrics.mem_gib = peak_memory_gib();
    return metrics;
  }

  // False when the step is left out because its numbers are not finite.
  bool update(const StepMetrics& metrics, const std::vector<Batch>& batches) {
    if (!std::isfinite(metrics.loss) || !std::isfinite(metrics.grad_norm)) {
      std::string samples;
      for (const Batch& batch : batches)
        for (const int64_t id : batch.sample_ids) samples += fmt::format(" {}", id);
      const std::string what = fmt::format("step {}: loss {}, gradient norm {}; samples{}", metrics.step,
                                           metrics.loss, metrics.grad_norm, samples);
      if (options_.on_nonfinite == "stop" || ++skips_ >= kMostSkips)
        fail(ExitCode::non_finite,
             "{}. Nothing was updated; lower --lr, look at these samples, or use --on-nonfinite skip", what);
      fmt::print(stderr, "{}: skipped\n", what);
      return false;
    }
    skips_ = 0;
    // As torch's clip_grad_norm_ has it, its small constant included.
    const double clip =
        options_.grad_clip > 0 ? std::min(1.0, options_.grad_clip / (metrics.grad_norm + 1e-6)) : 1.0;
    update_parameters(*ops_, model_->weights(),
                      {metrics.learning_rate, options_.beta1, options_.beta2, options_.epsilon,
                       options_.weight_decay, metrics.step, clip});
    return true;
  }

  void print_step(const StepMetrics& metrics) {
    const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
    const double a_step = elapsed / static_cast<double>(std::max<int64_t>(1, metrics.step - first_step_));
    say("{}\n", console_line(metrics, steps_, a_step * static_cast<double>(steps_ - metrics.step)));
  }

  void evaluate() {
    const Perplexity result =
        perplexity_blocks(*model_, *eval_data_, AttentionPattern{}, options_.batch, false);
    say("eval  step {} | blocks, full attention, context {} | nll {:.5f} | ppl {:.3f}\n", state_.step,
        options_.context, result.nll, result.ppl);
  }

  void save() { save_checkpoint(options_, *ops_, model_->weights(), setup_.config, state_, fingerprint_); }

  const TrainOptions& options_;
  TrainSetup setup_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Dataset> data_, eval_data_;
  Json fingerprint_;
  int64_t steps_ = 0, first_step_ = 0, skips_ = 0;
  std::unique_ptr<Llama> model_;
  TrainState state_;
  std::chrono::steady_clock::time_point started_;
};

}  // namespace

ExitCode train(const TrainOptions& options) {
  prepare_output(options);  // first: nothing is loaded before it is known that results can be kept
  return Trainer(options).run();
}

}  // namespace sinklora
