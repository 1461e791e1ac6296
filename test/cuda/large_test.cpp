// Tensors of more than 2^31 elements: every op runs over all of one, and rows at its beginning, around
// element 2^31 and at its end are compared with the oracle, which sees these rows only. Where a test needs
// more memory than is free it says so and passes.
#include "test/cuda/gpu_test.h"

using namespace sinklora;
using namespace sinklora::test;

namespace {

constexpr int64_t kBorder = int64_t{1} << 31;              // elements
constexpr int64_t kTokens = 67'200, kVocabulary = 32'000;  // logits of 67,200 tokens
constexpr int64_t kWideTokens = 97'600, kWidth = 11'008;   // gate and up of LLaMA-2-7B
constexpr int64_t kHidden = 4096, kPeriod = 1'000'003;     // the latter fits no row

Ops& gpu() { return *backends().bf16; }

bool fits(int64_t gib) {
  const int64_t free = cuda_available_memory() >> 30;
  if (free < gib) MESSAGE("skipped: needs " << gib << " GiB of GPU memory, " << free << " are free");
  return free >= gib;
}

class DeviceTensor {
 public:
  DeviceTensor(int64_t rows, int64_t columns, DType type)
      : view(gpu().allocate(rows * columns * size_of(type)), type, {rows, columns}, Device::cuda) {}
  explicit DeviceTensor(const std::vector<int32_t>& values)
      : view(gpu().allocate(static_cast<int64_t>(values.size()) * 4), DType::i32,
             {static_cast<int64_t>(values.size())}, Device::cuda) {
    gpu().upload(view, values.data());
  }
  ~DeviceTensor() { gpu().release(view.data); }
  DeviceTensor(const DeviceTensor&) = delete;
  DeviceTensor& operator=(const DeviceTensor&) = delete;

  // Element i of the tensor becomes element i % kPeriod of the numbers, which are returned.
  std::vector<BFloat16> fill(double scale = 1) {
    const RandomStream random(9, "large");
    std::vector<BFloat16> numbers(kPeriod);
    for (size_t i = 0; i < numbers.size(); ++i)
      numbers[i] = BFloat16(static_cast<float>(scale * random.normal(i)));
    const DeviceTensor pattern(1, kPeriod, DType::bf16);
    gpu().upload(pattern.view, numbers.data());
    const Tensor flat(view.data, view.dtype, {1, view.size()}, Device::cuda);
    for (int64_t begin = 0; begin < view.size(); begin += kPeriod) {
      const int64_t count = std::min(kPeriod, view.size() - begin);
      gpu().copy(flat.column_slice(begin, count), pattern.view.column_slice(0, count));
    }
    gpu().synchronize();
    return numbers;
  }
  Tensor columns(int64_t begin, int64_t count) const { return view.column_slice(begin, count); }

  Tensor view;
};

Values values_of(const Tensor& contiguous) {
  std::vector<char> bytes(static_cast<size_t>(contiguous.bytes()));
  gpu().download(bytes.data(), contiguous);
  Values values(static_cast<size_t>(contiguous.size()));
  const auto read = [&]<class T>(T number) {
    for (size_t i = 0; i < values.size(); ++i) {
      std::memcpy(&number, bytes.data() + i * sizeof number, sizeof number);
      values[i] = static_cast<double>(static_cast<float>(number));
    }
  };
  if (contiguous.dtype == DType::bf16)
    read(BFloat16{});
  else if (contiguous.dtype == DType::f32)
    read(float{});
  else
    read(int32_t{});
  return values;
}
Values row_values(const Tensor& tensor, int64_t row) { return values_of(tensor.row_slice(row, 1)); }

// One argument of an op: row by row like the samples, or read whole.
struct Part {
  const char* name;
  Tensor tensor;
  bool output = false, whole = false;

  Values gather(const std::vector<int64_t>& samples) const {
    Values values;
    for (const int64_t row : samples) {
      const Values line = row_values(tensor, row);
      values.insert(values.end(), line.begin(), line.end());
    }
    return values;
  }
  Argument argument(const std::vector<int64_t>& samples) const {
    const Kind kind = tensor.dtype == DType::bf16  ? Kind::act
                      : tensor.dtype == DType::f32 ? Kind::stat
                                                   : Kind::i32;
    return {name,
            kind,
            whole ? tensor.rows() : static_cast<int64_t>(samples.size()),
            tensor.row_size(),
            whole ? values_of(tensor) : gather(samples),
            output,
            0,
            tensor.rank == 1};
  }
};

// Rows of a tensor `stride` elements apart: its ends, and those at element 2^31.
std::vector<int64_t> samples_of(int64_t rows, int64_t stride) {
  const int64_t border = kBorder / stride;
  REQUIRE(border + 1 < rows);
  return {0, 1, border - 1, border, border + 1, rows - 1};
}

// The op over the whole tensors on the GPU, over the samples on the CPU.
void check_rows(const std::vector<Part>& parts, const std::vector<int64_t>& samples, const Op& op) {
  std::vector<Argument> arguments;
  std::vector<Tensor> tensors;
  for (const Part& part : parts) {
    arguments.push_back(part.argument(samples));
    tensors.push_back(part.tensor);
  }
  op(gpu(), tensors);
  std::vector<Values> got;
  for (const Part& part : parts)
    if (part.output) got.push_back(part.gather(samples));
  check_errors(arguments, got, evaluate(*backends().oracle, arguments, op),
               plain_evaluation(arguments, op, DType::bf16));
}

std::vector<int32_t> numbers_below(int64_t count, int64_t bound) {
  const RandomStream random(11, "numbers");
  std::vector<int32_t> numbers(static_cast<size_t>(count));
  for (size_t i = 0; i < numbers.size(); ++i)
    numbers[i] = static_cast<int32_t>(random.below(i, static_cast<uint64_t>(bound)));
  return numbers;
}

}  // namespace

TEST_CASE("beyond 2^31 elements: SwiGLU over gate and up of 97,600 tokens") {
  if (!fits(8)) return;
  DeviceTensor gate_up(kWideTokens, 2 * kWidth, DType::bf16), act(kWideTokens, kWidth, DType::bf16);
  gate_up.fill(3);
  const std::vector<int64_t> samples = samples_of(kWideTokens, 2 * kWidth);
  check_rows({{"act", act.view, true}, {"gate_up", gate_up.view}}, samples,
             [](Ops& ops, const auto& t) { ops.swiglu_forward(t[0], t[1]); });
  check_rows({{"d_act", act.view}, {"d_gate_up", gate_up.view, true}}, samples,
             [](Ops& ops, const auto& t) { ops.swiglu_backward(t[1], t[0], t[1]); });
}

TEST_CASE("beyond 2^31 elements: norm, RoPE, linear and loss on slices of a buffer of 67,200 x 32,000") {
  if (!fits(8)) return;
  DeviceTensor wide(kTokens, kVocabulary, DType::bf16), statistic(1, kTokens, DType::f32);
  DeviceTensor gain(1, kHidden, DType::bf16), angles(1024, 64, DType::f32);
  wide.fill(), gain.fill(), angles.fill();
  const std::vector<int64_t> samples = samples_of(kTokens, kVocabulary);
  const auto slice = [&](int64_t i) { return wide.columns(i * kHidden, kHidden); };
  const Tensor of_token(statistic.view.data, DType::f32, {kTokens}, Device::cuda);
  const Tensor gains(gain.view.data, DType::bf16, {kHidden}, Device::cuda);
  // The reciprocal of the rounded sum is no output: a plain evaluation does not round the sum.
  check_rows({{"sum", slice(0), true},
              {"normed", slice(1), true},
              {"reciprocal", of_token},
              {"x", slice(2)},
              {"delta", slice(3)},
              {"gain", gains, false, true}},
             samples, [](Ops& ops, const auto& t) {
               ops.residual_rmsnorm_forward(t[0], t[1], t[2], t[3], t[4], t[5], 1e-5);
             });
  check_rows(
      {{"normed", slice(4), true}, {"x", slice(0)}, {"reciprocal", of_token}, {"gain", gains, false, true}},
      samples, [](Ops& ops, const auto& t) { ops.rmsnorm_rebuild(t[0], t[1], t[2], t[3]); });
  check_rows({{"d_x", slice(3), true},
              {"d_normed", slice(2)},
              {"x", slice(0)},
              {"reciprocal", of_token},
              {"gain", gains, false, true}},
             samples,
             [](Ops& ops, const auto& t) { ops.rmsnorm_backward(t[0], {}, t[1], t[2], t[3], t[4]); });
  const DeviceTensor positions(numbers_below(kTokens, angles.view.rows()));
  check_rows({{"x", wide.columns(5 * kHidden, 2 * kHidden), true},
              {"positions", positions.view},
              {"cosines", angles.view, false, true}},
             samples, [](Ops& ops, const auto& t) { ops.rope(t[0], t[1], t[2], t[2], 128, false); });

  DeviceTensor weight(512, 64, DType::bf16);
  weight.fill(0.1);
  check_rows({{"y", wide.columns(0, 512), true},
              {"x", wide.columns(2 * kHidden, 64)},
              {"W", weight.view, false, true}},
             samples, [](Ops& ops, const auto& t) {
               ops.linear_forward(t[0], {}, t[1], {t[2], {}});
             });
  check_rows({{"d_x", wide.columns(2 * kHidden, 64), true},
              {"d_y", wide.columns(0, 512)},
              {"W", weight.view, false, true}},
             samples, [](Ops& ops, const auto& t) {
               ops.linear_backward(t[0], {}, t[1], {}, {}, {t[2], {}});
             });
  DeviceTensor head(kVocabulary, 64, DType::bf16);
  head.fill(0.1);
  const DeviceTensor targets(numbers_below(kTokens, kVocabulary));
  check_rows({{"nll", of_token, true},
              {"d_hidden", wide.columns(0, 64), true},
              {"hidden", wide.columns(3 * kHidden, 64)},
              {"W", head.view, false, true},
              {"targets", targets.view}},
             samples,
             [](Ops& ops, const auto& t) { ops.head_cross_entropy(t[0], t[1], {}, t[2], t[3], t[4], 1.0); });
}

TEST_CASE("beyond 2^31 elements: embedding") {
  if (!fits(15)) return;
  // Rows of a table and of its gradient lie as far apart as those of the buffers.
  DeviceTensor wide(kTokens, kVocabulary, DType::bf16), gradient(kTokens, kVocabulary, DType::f32);
  wide.fill();
  gpu().copy(gradient.columns(0, kHidden), wide.columns(2 * kHidden, kHidden));
  const std::vector<int64_t> samples = samples_of(kTokens, kVocabulary);
  std::vector<int32_t> ids(kTokens);  // two tokens each of the upper half
  for (size_t t = 0; t < ids.size(); ++t)
    ids[t] = static_cast<int32_t>(kTokens - 1 - static_cast<int64_t>(t / 2));
  const DeviceTensor tokens(ids);
  const Tensor table = wide.columns(0, kHidden), out = wide.columns(kHidden, kHidden);
  gpu().embedding_forward(out, table, tokens.view);
  for (const int64_t t : samples) CHECK(row_values(out, t) == row_values(table, ids[static_cast<size_t>(t)]));

  const Tensor d_table = gradient.columns(0, kHidden);
  std::vector<Values> expected;
  for (const int64_t row : samples) {
    Values sum = row_values(d_table, row);
    for (int64_t t = 0; t < kTokens; ++t) {
      if (ids[static_cast<size_t>(t)] != row) continue;
      const Values added = row_values(out, t);
      for (size_t c = 0; c < sum.size(); ++c) sum[c] += added[c];
    }
    expected.push_back(sum);
  }
  gpu().embedding_backward(d_table, out, tokens.view);
  for (size_t i = 0; i < samples.size(); ++i) {  // two sums of bf16 numbers: f32 rounds each once
    CAPTURE(samples[i]);
    const Errors error = error_between(row_values(d_table, samples[i]), expected[i]);
    const Errors size = error_between(expected[i], Values(expected[i].size()));
    CHECK(error.most <= 2 * 2 * kUnit * size.most);
  }
}

TEST_CASE("beyond 2^31 elements: transfers, copies, conversion and zeros") {
  if (!fits(15)) return;
  DeviceTensor wide(kTokens, kVocabulary, DType::bf16);
  const std::vector<BFloat16> numbers = wide.fill();
  const auto elements = static_cast<size_t>(wide.view.size()), period = numbers.size();
  // A difference in bits: BFloat16 has no comparison, and NaN would have none.
  const auto differing = [&](const std::vector<BFloat16>& host) {
    int64_t count = 0;
    for (size_t begin = 0; begin < elements; begin += period)
      count += std::memcmp(host.data() + begin, numbers.data(),
                           std::min(period, elements - begin) * sizeof(BFloat16)) != 0;
    return count;
  };
  std::vector<BFloat16> host(elements);
  gpu().download(host.data(), wide.view);
  CHECK(differing(host) == 0);
  {
    DeviceTensor single(kTokens, kVocabulary, DType::f32);
    gpu().copy(single.view, wide.view);
    gpu().zero(wide.view);
    for (const int64_t row : samples_of(kTokens, kVocabulary))
      CHECK(row_values(wide.view, row) == Values(kVocabulary));
    gpu().copy(wide.columns(0, 17'000), single.columns(0, 17'000));
    gpu().copy(wide.columns(17'000, 15'000), single.columns(17'000, 15'000));
    std::memset(static_cast<void*>(host.data()), 0xff, elements * sizeof(BFloat16));
    gpu().download(host.data(), wide.view);
    CHECK(differing(host) == 0);
  }
  DeviceTensor other(kTokens, kVocabulary, DType::bf16);
  gpu().upload(other.view, host.data());
  gpu().zero(wide.columns(0, 17'000));  // 17,000 of each row; the rest stays
  gpu().copy(wide.columns(0, 17'000), other.columns(0, 17'000));
  std::memset(static_cast<void*>(host.data()), 0xff, elements * sizeof(BFloat16));
  gpu().download(host.data(), wide.view);
  CHECK(differing(host) == 0);
}
