// Fuzzes page tables, views and masks: a plan refuses them, or every target computes over them what the oracle says.
#include <tbb/task_arena.h>

#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "fuzz/fuzz_input.h"
#include "kernels/tolerances.h"
#include "pagedkv/attention.h"
#include "pagedkv/cpu.h"
#include "pagedkv/reference.h"

using namespace pagedkv;
using fuzz::check;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t kMaxWork = 200'000;  // multiplications of one case, so that the oracle takes milliseconds

/// A batch as a caller would hold it, whole or spoiled; each array is as long as its span, so that sanitizers see a
/// read past it.
struct Batch {
  std::vector<std::int32_t> qo_indptr = {0}, kv_indptr, kv_indices, last_page_len, block_table, seq_lens, q_start;
  std::int64_t table_stride = 0;
  MaskKind mask_kind = MaskKind::kNone;
  std::vector<std::byte> mask;
  std::vector<std::int64_t> mask_offsets, mask_row_strides, mask_head_strides;
  std::int64_t rows = 0, longest = 0;

  [[nodiscard]] AttentionBatch view() const {
    return {.qo_indptr = qo_indptr,
            .kv_indptr = kv_indptr,
            .kv_indices = kv_indices,
            .kv_last_page_len = last_page_len,
            .block_table = block_table,
            .block_table_stride = table_stride,
            .seq_lens = seq_lens,
            .q_start = q_start,
            .mask = {mask_kind, mask, mask_offsets, mask_row_strides, mask_head_strides}};
  }
};

/// Layer, batch, pages and queries, drawn from the fuzzer's bytes.
class Case {
 public:
  explicit Case(fuzz::Input& input) : input_(input) {
    draw_layer();
    draw_batch();
    draw_mask();
    for (std::size_t i = input_.below(8); i > 5; --i) spoil();  // 0, or 1 or 2 in a quarter of cases
    batch_.rows = std::clamp<std::int64_t>(batch_.qo_indptr.empty() ? 0 : batch_.qo_indptr.back(), 0, 500);
    draw_pages();
    draw_queries();
  }

  /// A spoiled number may have made a case large that is sound nevertheless.
  [[nodiscard]] bool is_small() const {
    const std::int64_t keys = static_cast<std::int64_t>(std::max(batch_.kv_indices.size(), batch_.block_table.size())) *
                              std::min<std::int64_t>(config_.page_size, 256);
    // A plan takes as long as there are rows, and there are as many as the batch says, up to 2^26.
    if (!batch_.qo_indptr.empty() && batch_.qo_indptr.back() > 100'000 && batch_.qo_indptr.back() < 1 << 26)
      return false;
    return static_cast<double>(batch_.rows) * config_.num_q_heads * config_.head_dim * static_cast<double>(keys) < 1e8;
  }

  void run() {
    std::vector<double> want(num_out(), -1), want_lse(num_heads(), -1);
    const Result<void> oracle = reference_attention(config_, batch_.view(), view_, q(), want, want_lse);
    for (const TargetInfo& target : targets()) {
      if (!target.available) continue;
      config_.target = target.name;
      run_target(target.name, oracle.has_value(), want, want_lse);
    }
  }

 private:
  // Layer ------------------------------------------------------------------------------------------------------------

  void draw_layer() {
    config_.num_kv_heads = input_.between(1, 3);
    config_.num_q_heads = config_.num_kv_heads * input_.between(1, 9);
    config_.head_dim = input_.between(1, 80);
    config_.v_head_dim = input_.rarely(2) ? input_.between(1, 80) : 0;
    config_.page_size = input_.rarely(8) ? input_.between(1, 256) : input_.between(1, 20);
    const std::size_t format = input_.below(4);
    config_.kv_dtype = format == 3 ? DType::f16 : static_cast<DType>(format);
    config_.variant.f16_as_bf16 = format == 3;
    config_.cascade = input_.rarely(4);
    q_dtype_ = static_cast<DType>(input_.below(3));
    out_dtype_ = static_cast<DType>(input_.below(3));
    AttentionVariant& variant = config_.variant;
    variant.causal = !input_.rarely(3);
    if (input_.rarely(3)) variant.window_left = static_cast<std::int32_t>(input_.below(100));
    if (input_.rarely(3)) variant.logits_soft_cap = static_cast<float>(input_.between(1, 50));
    if (input_.rarely(4)) variant.sm_scale = number();
    if (input_.rarely(3)) variant.sinks = fill(sinks_, config_.num_q_heads);
    if (input_.rarely(3)) variant.alibi_slopes = fill(slopes_, config_.num_q_heads);
  }
  // One of a few usual numbers, or any float at all.
  float number() {
    constexpr std::array kUsual = {0.0F, 1.0F, -1.0F, 0.125F, -0.5F, 2.0F, 1e-40F, 3.0F};
    const std::size_t choice = input_.below(32);
    return choice < 31 ? kUsual[choice % kUsual.size()] : std::bit_cast<float>(input_.number<std::uint32_t>());
  }
  std::span<const float> fill(std::vector<float>& numbers, std::size_t count) {
    numbers.resize(count);
    for (float& value : numbers) value = number();
    return numbers;
  }

  // Batch ------------------------------------------------------------------------------------------------------------

  void draw_batch() {
    const std::size_t count = input_.below(5);
    const bool padded = input_.rarely(2), has_starts = input_.rarely(3);
    num_pages_ = static_cast<std::int32_t>(input_.between(1, 40));
    if (!padded) batch_.kv_indptr = {0};
    std::vector<std::vector<std::int32_t>> tables;
    for (std::size_t i = 0; i < count; ++i) {
      const auto q_len = static_cast<std::int32_t>(input_.below(input_.rarely(4) ? 40 : 4));
      const std::int32_t length = draw_length(q_len);
      const auto page_size = static_cast<std::int32_t>(config_.page_size);
      tables.emplace_back();
      const auto needed = static_cast<std::size_t>((length + page_size - 1) / page_size);
      if (i > 0 && input_.rarely(4)) tables.back() = tables[i - 1];  // a shared prefix
      tables.back().resize(std::min(tables.back().size(), needed));
      while (tables.back().size() < needed) {
        tables.back().push_back(static_cast<std::int32_t>(input_.below(static_cast<std::size_t>(num_pages_))));
      }
      const auto pages = static_cast<std::int32_t>(tables.back().size());
      batch_.qo_indptr.push_back(batch_.qo_indptr.back() + q_len);
      batch_.table_stride = std::max<std::int64_t>(batch_.table_stride, pages);
      if (padded) {
        batch_.seq_lens.push_back(length);
      } else {
        batch_.kv_indptr.push_back(batch_.kv_indptr.back() + pages);
        batch_.last_page_len.push_back(pages == 0 ? 0 : length - (pages - 1) * page_size);
        batch_.kv_indices.insert(batch_.kv_indices.end(), tables.back().begin(), tables.back().end());
      }
      if (has_starts) batch_.q_start.push_back(static_cast<std::int32_t>(input_.below(200)));
      batch_.longest = std::max<std::int64_t>(batch_.longest, length);
    }
    if (padded) pad(tables);
  }
  // Mostly short; never so long that the oracle would take its time.
  std::int32_t draw_length(std::int32_t q_len) {
    const std::int64_t key_work = std::max<std::int64_t>(q_len, 1) * config_.num_q_heads * (config_.head_dim + 8);
    const std::int64_t room = std::clamp<std::int64_t>((kMaxWork - work_) / key_work, 0, 2500);
    const std::size_t wanted = input_.rarely(16) ? input_.below(2500) : input_.below(90);
    const std::int64_t length = std::min<std::int64_t>(static_cast<std::int64_t>(wanted), room);
    work_ += length * key_work;
    return static_cast<std::int32_t>(length);
  }
  void pad(const std::vector<std::vector<std::int32_t>>& tables) {
    batch_.table_stride += static_cast<std::int64_t>(input_.below(3));
    for (const std::vector<std::int32_t>& table : tables) {
      const auto row = batch_.block_table.insert(batch_.block_table.end(), table.begin(), table.end());
      const auto used = row - batch_.block_table.begin();
      batch_.block_table.resize(static_cast<std::size_t>(used + batch_.table_stride), -7);  // must stay unread
    }
  }

  void draw_mask() {
    if (!input_.rarely(3)) return;
    batch_.mask_kind = static_cast<MaskKind>(input_.between(1, 3));
    const std::size_t count = batch_.qo_indptr.size() - 1;
    const bool a_head = input_.rarely(2), strided = input_.rarely(2);
    std::int64_t entries = static_cast<std::int64_t>(input_.below(9));
    const AttentionBatch view = batch_.view();
    for (std::size_t i = 0; i < count; ++i) {
      const std::int64_t q_len = batch_.qo_indptr[i + 1] - batch_.qo_indptr[i], kv_len = length_of(view, i);
      const std::int64_t row_stride = kv_len + (strided ? static_cast<std::int64_t>(input_.below(4)) : 0);
      batch_.mask_offsets.push_back(entries);
      if (strided) batch_.mask_row_strides.push_back(row_stride);
      if (a_head) batch_.mask_head_strides.push_back(row_stride * q_len);
      if (q_len == 0) continue;
      const std::int64_t heads = a_head ? config_.num_q_heads : 1;
      entries += row_stride * q_len * (heads - 1) + row_stride * (q_len - 1) + kv_len;
    }
    const auto size = static_cast<std::size_t>(entries);
    const std::size_t bytes = batch_.mask_kind == MaskKind::kBits       ? (size + 7) / 8
                              : batch_.mask_kind == MaskKind::kAdditive ? size * sizeof(float)
                                                                        : size;
    batch_.mask.resize(bytes);
    std::uint32_t random = input_.number<std::uint32_t>() | 1;
    for (std::size_t i = 0; i < bytes; ++i) {
      random = random * 1664525U + 1013904223U;
      batch_.mask[i] = std::byte{static_cast<unsigned char>(random >> 24)};
    }
    if (batch_.mask_kind != MaskKind::kAdditive) return;
    for (std::size_t i = 0; i < size; ++i) {  // small numbers and -inf, not any four bytes
      const float bias = std::to_integer<int>(batch_.mask[4 * i]) % 4 == 0
                             ? -kInfinity
                             : static_cast<float>(std::to_integer<int>(batch_.mask[4 * i + 1])) / 64 - 2;
      std::memcpy(batch_.mask.data() + 4 * i, &bias, sizeof bias);
    }
  }
  std::int64_t length_of(const AttentionBatch& view, std::size_t i) const {
    if (view.kv_indptr.empty()) return view.seq_lens[i];
    const std::int64_t pages = view.kv_indptr[i + 1] - view.kv_indptr[i];
    return pages == 0 ? 0 : (pages - 1) * config_.page_size + view.kv_last_page_len[i];
  }

  // Changes one number or one length to what a caller should not pass.
  void spoil() {
    const std::array ints = {&batch_.qo_indptr,   &batch_.kv_indptr, &batch_.kv_indices, &batch_.last_page_len,
                             &batch_.block_table, &batch_.seq_lens,  &batch_.q_start};
    const std::array longs = {&batch_.mask_offsets, &batch_.mask_row_strides, &batch_.mask_head_strides};
    const std::size_t what = input_.below(ints.size() + longs.size() + 5);
    is_spoiled_ = true;
    if (what < ints.size()) {
      spoil_array(*ints[what]);
    } else if (what < ints.size() + longs.size()) {
      spoil_array(*longs[what - ints.size()]);
    } else {
      spoil_scalar(what - ints.size() - longs.size());
    }
  }
  template <class T>
  void spoil_array(std::vector<T>& array) {
    const std::size_t at = input_.below(array.size() + 2);
    const T value = static_cast<T>(input_.odd_number());
    if (at < array.size()) {
      array[at] = value;
    } else if (at == array.size()) {
      array.push_back(value);
    } else if (!array.empty()) {
      array.pop_back();
    }
    array.shrink_to_fit();  // a new allocation, as long as the span
  }
  void spoil_scalar(std::size_t what) {
    const auto value = static_cast<std::uint32_t>(input_.odd_number());
    switch (what) {
      case 0: batch_.table_stride = input_.odd_number(); break;
      case 1: batch_.mask.resize(batch_.mask.size() - std::min<std::size_t>(batch_.mask.size(), 1 + value % 8)); break;
      case 2: (value % 2 == 0 ? config_.head_dim : config_.v_head_dim) = input_.number<std::uint16_t>(); break;
      case 3: (value % 2 == 0 ? config_.num_kv_heads : config_.page_size) = value; break;
      default: config_.variant.window_left = static_cast<std::int32_t>(value); break;
    }
  }

  // Pages ------------------------------------------------------------------------------------------------------------

  // Rows as they lie in one of six ways. Bytes that belong to no row are NaN; memory ends with the last row.
  void draw_pages() {
    const std::int64_t element = static_cast<std::int64_t>(size_of(config_.kv_dtype));
    const std::int64_t pages = num_pages_, heads = std::clamp<std::int64_t>(config_.num_kv_heads, 1, 64);
    const std::int64_t tokens = std::clamp<std::int64_t>(config_.page_size, 1, 256);
    const std::int64_t k_row = std::min<std::int64_t>(config_.head_dim, 1024) * element;
    const std::int64_t v_row = std::min<std::int64_t>(v_dim(), 1024) * element;
    const std::int64_t gap = static_cast<std::int64_t>(input_.below(3)) * element;
    const std::size_t layout = input_.below(6);
    const bool by_token = layout == 1, latent = layout == 2, backwards = layout == 3, one_row = layout == 4;
    const std::int64_t row = latent ? std::max(k_row, v_row) + gap : k_row + v_row + gap;
    view_.k_token_stride = by_token ? row * heads : row;
    view_.k_head_stride = by_token ? row : row * tokens;
    view_.k_page_stride = row * tokens * heads;
    if (one_row) view_.k_token_stride = view_.k_head_stride = view_.k_page_stride = 0;
    const std::int64_t rows = one_row ? 1 : pages * tokens * heads;
    memory_.assign(static_cast<std::size_t>(rows * row - gap), std::byte{0xFF});
    std::uint32_t random = input_.number<std::uint32_t>() | 1;
    for (std::int64_t r = 0; r < rows; ++r)
      fill_row(memory_.data() + r * row, latent ? row - gap : k_row + v_row, random);
    view_.k = memory_.data();
    if (backwards) {
      view_.k = memory_.data() + (pages - 1) * view_.k_page_stride;
      view_.k_page_stride = -view_.k_page_stride;
    }
    view_.v = static_cast<const std::byte*>(view_.k) + (latent ? 0 : k_row);
    view_.v_token_stride = view_.k_token_stride;
    view_.v_head_stride = view_.k_head_stride;
    view_.v_page_stride = view_.k_page_stride;
    view_.num_pages = pages;
    if (layout != 5) return;
    // A view that no run may accept, or one with fewer pages than there are.
    std::array strides = {&view_.k_page_stride, &view_.k_head_stride, &view_.k_token_stride,
                          &view_.v_page_stride, &view_.v_head_stride, &view_.v_token_stride};
    std::int64_t& stride = *strides[input_.below(strides.size())];
    switch (input_.below(3)) {
      case 0: stride += element == 1 ? 0 : 1; break;
      case 1: stride = (std::int64_t{1} << (41 + input_.below(22))) + element; break;
      default: view_.num_pages = static_cast<std::int64_t>(input_.below(static_cast<std::size_t>(pages) + 1)); break;
    }
  }
  // Small multiples of 1/8, exact in every format, and now and then a subnormal number.
  void fill_row(std::byte* row, std::int64_t bytes, std::uint32_t& random) const {
    const std::size_t element = size_of(config_.kv_dtype);
    for (std::size_t i = 0; i < static_cast<std::size_t>(bytes) / element; ++i) {
      store(row + i * element, config_.kv_dtype, random);
    }
  }
  static void store(std::byte* at, DType dtype, std::uint32_t& random) {
    random = random * 1664525U + 1013904223U;
    const int eighths = static_cast<int>(random >> 26) - 32;
    const bool subnormal = (random >> 16 & 63) == 0;
    const float value = static_cast<float>(eighths) / 16;
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    if (dtype == DType::f32) {
      const float stored = subnormal ? 1e-41F : value;
      std::memcpy(at, &stored, sizeof stored);
      return;
    }
    std::uint16_t half = static_cast<std::uint16_t>(bits >> 16);  // bf16: exact, eighths has six bits
    if (dtype == DType::f16) {
      const std::uint32_t exponent = (bits >> 23) & 0xFF;
      half = static_cast<std::uint16_t>((bits >> 16 & 0x8000) |
                                        (exponent == 0 ? 0 : ((exponent - 112) << 10 | (bits >> 13 & 0x3FF))));
    }
    if (subnormal) half = 3;
    std::memcpy(at, &half, sizeof half);
  }

  void draw_queries() {
    const std::size_t elements = num_heads() * dim();
    q_.resize(elements * size_of(q_dtype_));
    std::uint32_t random = input_.number<std::uint32_t>() | 1;
    for (std::size_t i = 0; i < elements; ++i) store(q_.data() + i * size_of(q_dtype_), q_dtype_, random);
  }

  // Runs -------------------------------------------------------------------------------------------------------------

  [[nodiscard]] std::uint32_t v_dim() const { return config_.v_head_dim != 0 ? config_.v_head_dim : config_.head_dim; }
  [[nodiscard]] std::size_t dim() const { return std::min<std::size_t>(config_.head_dim, 1024); }
  [[nodiscard]] std::size_t num_heads() const {
    return static_cast<std::size_t>(batch_.rows) * std::min<std::size_t>(config_.num_q_heads, 64);
  }
  [[nodiscard]] std::size_t num_out() const { return num_heads() * std::min<std::size_t>(v_dim(), 1024); }
  [[nodiscard]] ConstTensor q() const { return {q_.data(), num_heads() * dim(), q_dtype_}; }

  void run_target(std::string_view target, bool is_sound, const std::vector<double>& want,
                  const std::vector<double>& want_lse) {
    const Result<std::size_t> needed = AttentionPlan::workspace_bytes(config_, batch_.view());
    Result<AttentionPlan> plan = Error{};
    std::vector<std::byte> workspace;
    if (needed && *needed < std::size_t{64} << 20 && input_.rarely(2)) {
      workspace.resize(*needed + 64);
      void* begin = workspace.data();
      std::size_t room = workspace.size();
      check(std::align(64, *needed, begin, room) != nullptr, "the workspace can be aligned");
      plan = AttentionPlan::create(config_, batch_.view(), {static_cast<std::byte*>(begin), *needed});
    } else {
      plan = AttentionPlan::create(config_, batch_.view());
    }
    check(needed.has_value() == plan.has_value(), "workspace_bytes accepts what create accepts");
    if (!plan) {
      check(plan.error().code == Errc::kInvalidArgument || plan.error().code == Errc::kUnsupported ||
                plan.error().code == Errc::kOutOfMemory,
            "a batch is refused with one of the codes that are promised");
      check(!is_sound || plan.error().code != Errc::kInvalidArgument, "the oracle accepts what a plan accepts");
      return;
    }
    if (input_.rarely(4)) check(plan->extend(batch_.view()).has_value(), "a plan can be extended by nothing");
    std::vector<std::byte> out(num_out() * size_of(out_dtype_), std::byte{0x5A});
    std::vector<float> lse(num_heads(), 12345);
    const Result<void> done =
        arena().execute([&] { return plan->run(view_, q(), Tensor{out.data(), num_out(), out_dtype_}, lse); });
    check(done.has_value() == is_sound, "a plan runs over what the oracle accepts, and nothing else");
    if (done) compare(target, out, lse, want, want_lse);
  }
  static tbb::task_arena& arena() {
    static tbb::task_arena one_thread(1);
    return one_thread;
  }

  static double load(const std::byte* at, DType dtype) {
    if (dtype == DType::f32) {
      float value = 0;
      std::memcpy(&value, at, sizeof value);
      return static_cast<double>(value);
    }
    std::uint16_t bits = 0;
    std::memcpy(&bits, at, sizeof bits);
    if (dtype == DType::bf16) return static_cast<double>(std::bit_cast<float>(std::uint32_t{bits} << 16));
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double sign = (bits & 0x8000) != 0 ? -1 : 1;
    if (exponent == 31) return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * HUGE_VAL;
    return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25));
  }

  // Within the bound of the arithmetic, where that bound says anything: not for scales and slopes that are absurd.
  void compare(std::string_view target, const std::vector<std::byte>& out, const std::vector<float>& lse,
               const std::vector<double>& want, const std::vector<double>& want_lse) const {
    const bool rounds =
        testing::multiplies_bf16(target) && (config_.kv_dtype == DType::bf16 || config_.variant.f16_as_bf16);
    testing::Arithmetic arithmetic;
    if (rounds) arithmetic.q = arithmetic.p = testing::kRoundBf16;
    if (rounds && config_.variant.f16_as_bf16) arithmetic.kv = testing::kRoundBf16;
    testing::Magnitudes m;
    m.dim = config_.head_dim, m.keys = static_cast<double>(batch_.longest), m.q_max = m.k_max = m.v_max = 2;
    m.q_norm = m.k_norm = 2 * std::sqrt(m.dim);
    m.sm_scale = config_.variant.sm_scale != 0 ? static_cast<double>(config_.variant.sm_scale) : 1 / std::sqrt(m.dim);
    double slope = 0, sink = 0;
    for (const float value : slopes_) slope = std::max(slope, std::fabs(static_cast<double>(value)));
    for (const float value : sinks_) sink = std::max(sink, std::fabs(static_cast<double>(value)));
    const double distance = 2500 + 200;
    m.largest_bias = slope * distance + 4 + (std::isfinite(sink) ? sink : 0);
    const double logit_error = testing::logit_bound(arithmetic, m);
    if (!(logit_error < 0.05) || is_spoiled_) return;
    const double bound = testing::output_bound(arithmetic, m, out_dtype_) + 1e-6;
    const double lse_bound = testing::lse_bound(arithmetic, m) + 1e-6;
    for (std::size_t i = 0; i < want_lse.size(); ++i) {
      const auto got = static_cast<double>(lse[i]);
      check(std::isinf(want_lse[i]) ? got == want_lse[i] : std::fabs(got - want_lse[i]) <= lse_bound,
            "lse is within the bound of the oracle's");
    }
    for (std::size_t i = 0; i < want.size(); ++i) {
      check(std::fabs(load(out.data() + i * size_of(out_dtype_), out_dtype_) - want[i]) <= bound,
            "the output is within the bound of the oracle's");
    }
  }

  fuzz::Input& input_;
  AttentionConfig config_;
  DType q_dtype_ = DType::f32, out_dtype_ = DType::f32;
  std::vector<float> sinks_, slopes_;
  Batch batch_;
  std::int32_t num_pages_ = 1;
  std::int64_t work_ = 0;
  bool is_spoiled_ = false;
  std::vector<std::byte> memory_, q_;
  KvView view_;
};

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input input(data, size);
  Case test_case(input);
  if (test_case.is_small()) test_case.run();
  return 0;
}
