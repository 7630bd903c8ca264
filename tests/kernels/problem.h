// Random attention problems over pages with poisoned tails, between protected OS pages, run on any target and checked
// against the f64 oracle.
#pragma once

#include <tbb/global_control.h>
#include <tbb/info.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "format/convert.h"
#include "kernels/tolerances.h"
#include "pagedkv/attention.h"
#include "pagedkv/cpu.h"
#include "pagedkv/reference.h"
#include "support/guarded_memory.h"

namespace pagedkv::testing {

/// How rows lie in a page.
enum class PageLayout { kOurs, kTokenMajor, kApart, kLatent };  // kTokenMajor = NHD; kLatent: V is the front of K

struct SequenceShape {
  std::int32_t kv_len = 0, q_len = 1;
  std::int32_t q_start = -1;  // -1 = kv_len - q_len
};

/// Sequences first .. last begin with the pages of the first one's `tokens` first tokens, as far as those are whole.
struct SharedRun {
  std::size_t first = 0, last = 0;
  std::int32_t tokens = 0;
};

/// Rows and keys of a sequence that its mask shows or hides as a whole, for every head; elsewhere it is random.
struct MaskSpan {
  std::size_t sequence = 0;
  std::int32_t first_row = 0, end_row = 0, first_key = 0, end_key = 0;
  bool visible = false;
};

struct ProblemShape {
  AttentionConfig config = {.num_q_heads = 4, .num_kv_heads = 2, .head_dim = 32};
  std::vector<SequenceShape> sequences = {};
  DType q_dtype = DType::f32, out_dtype = DType::f32;
  MaskKind mask = MaskKind::kNone;
  bool mask_per_head = false;
  std::int32_t mask_row_padding = 0;      // entries between two rows of a mask
  std::vector<MaskSpan> mask_spans = {};  // a later one overrides an earlier one
  PageLayout layout = PageLayout::kOurs;
  bool padded_table = false;
  bool sinks = false, alibi = false;
  std::vector<SharedRun> shared_runs = {};  // a run within another comes behind it
  std::size_t share_groups = 0;  // sequence i begins with the whole pages of sequence i % share_groups; 0 = of none
  unsigned page_order = 1;       // seed of the placement of pages
  unsigned seed = 1;             // seed of all numbers; numbers do not depend on page size, order or layout
  float q_scale = 1, k_scale = 1, v_scale = 1;  // standard deviations
};

struct Outputs {
  std::vector<double> out, lse;
  std::vector<std::byte> out_bytes;
  std::vector<float> lse_bits;
  friend bool operator==(const Outputs& a, const Outputs& b) {  // bitwise
    return a.out_bytes.size() == b.out_bytes.size() && a.lse_bits.size() == b.lse_bits.size() && a.begins_with(b);
  }
  /// Whether these are first the rows of `other`, bit for bit.
  [[nodiscard]] bool begins_with(const Outputs& other) const {
    return out_bytes.size() >= other.out_bytes.size() && lse_bits.size() >= other.lse_bits.size() &&
           std::equal(other.out_bytes.begin(), other.out_bytes.end(), out_bytes.begin()) &&
           std::equal(other.lse_bits.begin(), other.lse_bits.end(), lse_bits.begin(), [](float x, float y) {
             return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y);
           });
  }
};

/// A batch with its pages, queries and masks. Everything that no row may read is NaN.
class Problem {
 public:
  explicit Problem(ProblemShape shape) : shape_(std::move(shape)) {
    config_ = shape_.config;
    v_dim_ = config_.v_head_dim != 0 ? config_.v_head_dim : config_.head_dim;
    make_variant();
    make_tables();
    make_pages();
    make_queries();
    make_masks();
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  [[nodiscard]] const AttentionConfig& config() const { return config_; }
  [[nodiscard]] std::size_t num_heads() const { return num_rows_ * config_.num_q_heads; }

  [[nodiscard]] AttentionBatch batch() const {
    AttentionBatch batch = {.qo_indptr = qo_indptr_, .q_start = q_start_};
    if (shape_.padded_table) {
      batch.block_table = block_table_;
      batch.block_table_stride = table_stride_;
      batch.seq_lens = seq_lens_;
    } else {
      batch.kv_indptr = kv_indptr_;
      batch.kv_indices = kv_indices_;
      batch.kv_last_page_len = last_page_len_;
    }
    batch.mask = {.kind = shape_.mask,
                  .bytes = mask_,
                  .offsets = mask_offsets_,
                  .row_strides = mask_row_strides_,
                  .head_strides = mask_head_strides_};
    return batch;
  }

  [[nodiscard]] KvView view() const { return view_; }
  [[nodiscard]] ConstTensor queries() const { return {q_.data(), num_heads() * config_.head_dim, shape_.q_dtype}; }

  [[nodiscard]] Result<Outputs> run(const char* target, int threads = 2) const {
    AttentionConfig config = config_;
    config.target = target;
    const auto needed = AttentionPlan::workspace_bytes(config, batch());
    if (!needed) return needed.error();
    // Rounded up so that it is aligned, whichever end is guarded; what was there before is NaN.
    GuardedVector<std::byte> workspace((*needed + 63) / 64 * 64, std::byte{0xFF});
    auto plan = AttentionPlan::create(config, batch(), {workspace.data(), *needed});
    if (!plan.has_value()) return plan.error();
    GuardedVector<std::byte> out(num_heads() * v_dim_ * size_of(shape_.out_dtype), std::byte{0xFF});
    GuardedVector<float> lse(num_heads(), std::numeric_limits<float>::quiet_NaN());
    // Without it an arena gets no more threads than there are CPUs.
    const auto parallelism = static_cast<std::size_t>(std::max(threads, tbb::info::default_concurrency()));
    const tbb::global_control allowed(tbb::global_control::max_allowed_parallelism, parallelism);
    tbb::task_arena arena(threads);
    const Result<void> done = arena.execute(
        [&] { return plan->run(view(), queries(), {out.data(), num_heads() * v_dim_, shape_.out_dtype}, lse); });
    if (!done) return done.error();
    Outputs outputs;
    outputs.out_bytes.assign(out.begin(), out.end());
    outputs.lse_bits.assign(lse.begin(), lse.end());
    for (std::size_t i = 0; i < num_heads() * v_dim_; ++i) {
      outputs.out.push_back(static_cast<double>(format::load_element(outputs.out_bytes.data(), i, shape_.out_dtype)));
    }
    outputs.lse.assign(outputs.lse_bits.begin(), outputs.lse_bits.end());
    return outputs;
  }

  [[nodiscard]] Result<Outputs> reference() const {
    Outputs outputs;
    outputs.out.assign(num_heads() * v_dim_, 0);
    outputs.lse.assign(num_heads(), 0);
    if (auto done = reference_attention(config_, batch(), view(), queries(), outputs.out, outputs.lse); !done) {
      return done.error();
    }
    return outputs;
  }

  /// Empty if `got` is as close to the oracle as its arithmetic allows, else what is wrong.
  [[nodiscard]] std::string difference(const Outputs& got, const Outputs& want, const Arithmetic& arithmetic) const {
    // Subnormal numbers may count as zero.
    const double smallest = static_cast<double>(std::numeric_limits<float>::min());
    const double out_bound = output_bound(arithmetic, magnitudes_, shape_.out_dtype) + 2 * smallest;
    const double bound = lse_bound(arithmetic, magnitudes_);
    for (std::size_t i = 0; i < want.lse.size(); ++i) {
      const bool empty = std::isinf(want.lse[i]);
      if (empty ? got.lse[i] != want.lse[i] : !(std::fabs(got.lse[i] - want.lse[i]) <= bound)) {
        return "lse " + std::to_string(i) + ": " + std::to_string(got.lse[i]) + " instead of " +
               std::to_string(want.lse[i]) + ", bound " + std::to_string(bound);
      }
    }
    for (std::size_t i = 0; i < want.out.size(); ++i) {
      if (!(std::fabs(got.out[i] - want.out[i]) <= out_bound)) {
        return "out " + std::to_string(i) + ": " + std::to_string(got.out[i]) + " instead of " +
               std::to_string(want.out[i]) + ", bound " + std::to_string(out_bound);
      }
    }
    return {};
  }

 private:
  void make_variant() {
    std::mt19937 random(shape_.seed + 77);
    std::uniform_real_distribution<float> uniform(0.0F, 1.0F);
    for (std::uint32_t h = 0; h < config_.num_q_heads; ++h) {
      sinks_.push_back(15 * uniform(random));
      slopes_.push_back(std::exp2(-8.0F * static_cast<float>(h + 1) / static_cast<float>(config_.num_q_heads)));
    }
    sinks_.shrink_to_fit(), slopes_.shrink_to_fit();
    if (shape_.sinks) config_.variant.sinks = sinks_;
    if (shape_.alibi) config_.variant.alibi_slopes = slopes_;
  }

  void make_tables() {
    const auto page_size = static_cast<std::int32_t>(config_.page_size);
    qo_indptr_ = kv_indptr_ = {0};
    bool explicit_start = false;
    for (const SequenceShape& s : shape_.sequences) {
      const std::int32_t pages = (s.kv_len + page_size - 1) / page_size;
      qo_indptr_.push_back(qo_indptr_.back() + s.q_len);
      kv_indptr_.push_back(kv_indptr_.back() + pages);
      last_page_len_.push_back(pages == 0 ? 0 : s.kv_len - (pages - 1) * page_size);
      seq_lens_.push_back(s.kv_len);
      table_stride_ = std::max<std::int64_t>(table_stride_, pages);
      q_start_.push_back(s.q_start >= 0 ? s.q_start : s.kv_len - s.q_len);
      explicit_start |= s.q_start >= 0;
      magnitudes_.keys = std::max<double>(magnitudes_.keys, s.kv_len);
    }
    if (!explicit_start) q_start_.clear();
    for (auto* array : {&qo_indptr_, &kv_indptr_, &last_page_len_, &seq_lens_, &q_start_}) array->shrink_to_fit();
    num_rows_ = static_cast<std::size_t>(qo_indptr_.back());
    num_pages_ = kv_indptr_.back() + 3;  // some belong to nobody
    std::vector<std::int32_t> ids(static_cast<std::size_t>(num_pages_));
    std::iota(ids.begin(), ids.end(), 0);
    if (shape_.page_order != 0) std::shuffle(ids.begin(), ids.end(), std::mt19937(shape_.page_order));
    kv_indices_.assign(ids.begin(), ids.begin() + kv_indptr_.back());
    if (shape_.share_groups > 0) share_whole_pages();
    for (const SharedRun& run : shape_.shared_runs) {
      for (std::size_t i = run.first + 1; i <= run.last; ++i) share_pages(run.first, i, run.tokens);
    }
    // Entries past a sequence's end are garbage that must stay unread.
    block_table_.assign(shape_.sequences.size() * static_cast<std::size_t>(table_stride_),
                        std::numeric_limits<std::int32_t>::min());
    for (std::size_t i = 0; i < shape_.sequences.size(); ++i) {
      std::copy(kv_indices_.begin() + kv_indptr_[i], kv_indices_.begin() + kv_indptr_[i + 1],
                block_table_.begin() + static_cast<std::ptrdiff_t>(i) * table_stride_);
    }
  }

  // Whole pages of the first sequence of each group become those of its others.
  void share_whole_pages() {
    for (std::size_t i = shape_.share_groups; i < shape_.sequences.size(); ++i) {
      share_pages(i % shape_.share_groups, i, std::numeric_limits<std::int32_t>::max());
    }
  }

  void share_pages(std::size_t from, std::size_t to, std::int32_t tokens) {
    const std::int32_t common = std::min({shape_.sequences[from].kv_len, shape_.sequences[to].kv_len, tokens});
    std::copy_n(kv_indices_.begin() + kv_indptr_[from], common / static_cast<std::int32_t>(config_.page_size),
                kv_indices_.begin() + kv_indptr_[to]);
  }

  void make_view() {
    const auto element = static_cast<std::int64_t>(size_of(config_.kv_dtype));
    const std::int64_t k_row = config_.head_dim * element, v_row = static_cast<std::int64_t>(v_dim_) * element;
    const std::int64_t heads = config_.num_kv_heads, tokens = config_.page_size;
    view_.num_pages = num_pages_;
    switch (shape_.layout) {
      case PageLayout::kOurs:  // [page][head][K, V][token][dim]
        view_.k_token_stride = k_row, view_.v_token_stride = v_row;
        view_.k_head_stride = view_.v_head_stride = tokens * (k_row + v_row);
        view_.k_page_stride = view_.v_page_stride = heads * view_.k_head_stride;
        v_begin_ = tokens * k_row;
        break;
      case PageLayout::kTokenMajor:  // [page][token][K, V][head][dim]
        view_.k_head_stride = k_row, view_.v_head_stride = v_row;
        view_.k_token_stride = view_.v_token_stride = heads * (k_row + v_row);
        view_.k_page_stride = view_.v_page_stride = tokens * view_.k_token_stride;
        v_begin_ = heads * k_row;
        break;
      case PageLayout::kApart:  // K [page][head][token][dim], then all of V
        view_.k_token_stride = k_row, view_.v_token_stride = v_row;
        view_.k_head_stride = tokens * k_row, view_.v_head_stride = tokens * v_row;
        view_.k_page_stride = heads * view_.k_head_stride, view_.v_page_stride = heads * view_.v_head_stride;
        v_begin_ = num_pages_ * view_.k_page_stride;
        break;
      case PageLayout::kLatent:  // K [page][token][dim], V inside
        view_.k_token_stride = view_.v_token_stride = k_row;
        view_.k_head_stride = view_.v_head_stride = tokens * k_row;
        view_.k_page_stride = view_.v_page_stride = heads * tokens * k_row;
        break;
    }
    const std::int64_t bytes = shape_.layout == PageLayout::kApart ? v_begin_ + num_pages_ * view_.v_page_stride
                                                                   : num_pages_ * view_.k_page_stride;
    // Exactly the bytes of the pages: a read past the last row hits a protected OS page.
    pages_.assign(static_cast<std::size_t>(bytes), std::byte{0xFF});  // NaN in every format
    view_.k = pages_.data();
    view_.v = pages_.data() + v_begin_;
  }

  void make_pages() {
    make_view();
    std::mt19937 random(shape_.seed);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < shape_.sequences.size(); ++i) {
      for (std::int32_t token = 0; token < shape_.sequences[i].kv_len; ++token) {
        const auto page_size = static_cast<std::int32_t>(config_.page_size);
        const std::int64_t page = kv_indices_[static_cast<std::size_t>(kv_indptr_[i] + token / page_size)];
        const std::int64_t slot = token % page_size;
        for (std::int64_t head = 0; head < config_.num_kv_heads; ++head) {
          std::byte* const k =
              pages_.data() + page * view_.k_page_stride + head * view_.k_head_stride + slot * view_.k_token_stride;
          std::byte* const v = pages_.data() + v_begin_ + page * view_.v_page_stride + head * view_.v_head_stride +
                               slot * view_.v_token_stride;
          magnitudes_.k_norm =
              std::max(magnitudes_.k_norm, fill(k, config_.head_dim, config_.kv_dtype, shape_.k_scale, normal, random));
          magnitudes_.k_max = std::max(magnitudes_.k_max, largest(k, config_.head_dim, config_.kv_dtype));
          if (shape_.layout != PageLayout::kLatent) {
            fill(v, v_dim_, config_.kv_dtype, shape_.v_scale, normal, random);
          }
          magnitudes_.v_max = std::max(magnitudes_.v_max, largest(v, v_dim_, config_.kv_dtype));
        }
      }
    }
  }

  static double fill(std::byte* row, std::size_t dim, DType dtype, float scale, std::normal_distribution<float>& normal,
                     std::mt19937& random) {
    double norm = 0;
    for (std::size_t d = 0; d < dim; ++d) {
      format::store_element(row, d, dtype, scale * normal(random));
      const double value = static_cast<double>(format::load_element(row, d, dtype));
      norm += value * value;
    }
    return std::sqrt(norm);
  }

  static double largest(const std::byte* row, std::size_t dim, DType dtype) {
    double size = 0;
    for (std::size_t d = 0; d < dim; ++d) {
      size = std::max(size, std::fabs(static_cast<double>(format::load_element(row, d, dtype))));
    }
    return size;
  }

  void make_queries() {
    std::mt19937 random(shape_.seed + 1);
    std::normal_distribution<float> normal;
    q_.resize(num_heads() * config_.head_dim * size_of(shape_.q_dtype));
    for (std::size_t row = 0; row < num_heads(); ++row) {
      std::byte* const at = q_.data() + row * config_.head_dim * size_of(shape_.q_dtype);
      magnitudes_.q_norm =
          std::max(magnitudes_.q_norm, fill(at, config_.head_dim, shape_.q_dtype, shape_.q_scale, normal, random));
      magnitudes_.q_max = std::max(magnitudes_.q_max, largest(at, config_.head_dim, shape_.q_dtype));
    }
    const float scale = config_.variant.sm_scale;
    magnitudes_.sm_scale =
        scale != 0 ? static_cast<double>(scale) : 1 / std::sqrt(static_cast<double>(config_.head_dim));
    magnitudes_.dim = config_.head_dim;
    if (shape_.alibi) magnitudes_.largest_bias = magnitudes_.keys;
  }

  void make_masks() {
    if (shape_.mask == MaskKind::kNone) return;
    std::mt19937 random(shape_.seed + 2), random_bias(shape_.seed + 3);
    std::normal_distribution<float> normal;
    std::int64_t entries = 5;  // the first mask does not begin at 0
    const std::int64_t heads = shape_.mask_per_head ? config_.num_q_heads : 1;
    for (const SequenceShape& s : shape_.sequences) {
      mask_offsets_.push_back(entries);
      const std::int64_t row_stride = mask_row_stride(s);
      if (shape_.mask_row_padding != 0) mask_row_strides_.push_back(row_stride);
      mask_head_strides_.push_back(shape_.mask_per_head ? s.q_len * row_stride : 0);
      entries += heads * s.q_len * row_stride;
    }
    mask_offsets_.shrink_to_fit(), mask_row_strides_.shrink_to_fit(), mask_head_strides_.shrink_to_fit();
    const auto count = static_cast<std::size_t>(entries);
    const std::size_t size = shape_.mask == MaskKind::kAdditive ? sizeof(float) : 1;
    mask_.assign(shape_.mask == MaskKind::kBits ? (count + 7) / 8 : count * size, std::byte{0});
    std::vector<bool> visible(count);  // [sequence][head or 1][row][key], as the mask
    std::generate(visible.begin(), visible.end(), [&random] { return random() % 4 != 0; });
    for (const MaskSpan& span : shape_.mask_spans) set_mask_span(visible, span, heads);
    for (std::size_t i = 0; i < count; ++i) {
      if (shape_.mask == MaskKind::kBits && visible[i]) mask_[i / 8] |= std::byte{1} << (i % 8);
      if (shape_.mask == MaskKind::kBool && visible[i])
        mask_[i] = i % 9 == 8 ? std::byte{0xFF} : std::byte{1} << (i % 9);
      if (shape_.mask == MaskKind::kAdditive) {
        const float bias = visible[i] ? normal(random_bias) : -std::numeric_limits<float>::infinity();
        std::memcpy(mask_.data() + i * sizeof(float), &bias, sizeof(float));
      }
    }
    magnitudes_.largest_bias += shape_.mask == MaskKind::kAdditive ? 6 : 0;
  }

  std::int64_t mask_row_stride(const SequenceShape& s) const {
    return std::int64_t{s.kv_len} + shape_.mask_row_padding;
  }

  void set_mask_span(std::vector<bool>& visible, const MaskSpan& span, std::int64_t heads) const {
    const SequenceShape& s = shape_.sequences[span.sequence];
    for (std::int64_t head = 0; head < heads; ++head) {
      for (std::int64_t row = span.first_row; row < span.end_row; ++row) {
        const std::int64_t first = mask_offsets_[span.sequence] + (head * s.q_len + row) * mask_row_stride(s);
        std::fill(visible.begin() + first + span.first_key, visible.begin() + first + span.end_key, span.visible);
      }
    }
  }

  ProblemShape shape_;
  AttentionConfig config_;
  std::size_t v_dim_ = 0, num_rows_ = 0;
  std::int64_t num_pages_ = 0, table_stride_ = 0, v_begin_ = 0;
  GuardedVector<float> sinks_, slopes_;
  GuardedVector<std::int32_t> qo_indptr_, kv_indptr_, kv_indices_, last_page_len_, seq_lens_, q_start_, block_table_;
  GuardedVector<std::byte> pages_, q_, mask_;
  GuardedVector<std::int64_t> mask_offsets_, mask_row_strides_, mask_head_strides_;
  KvView view_ = {};
  Magnitudes magnitudes_ = {};
};

/// Names of the targets that this machine runs; only that of PAGEDKV_TARGET if it is set. Throws if it cannot run here:
/// a test of no target would pass.
inline std::vector<const char*> runnable_targets() {
  if (const char* const only = std::getenv("PAGEDKV_TARGET"); only != nullptr && *only != '\0') {
    const auto target = find_target(only);
    if (!target.has_value()) throw std::logic_error(std::string("PAGEDKV_TARGET: ") + target.error().what);
    return {(*target)->name};
  }
  std::vector<const char*> names;
  for (const TargetInfo& target : targets()) {
    if (target.available) names.push_back(target.name);
  }
  return names;
}

/// The arithmetic that a target may use for a layer.
inline Arithmetic arithmetic_of(std::string_view target, const AttentionConfig& config) {
  if (target == "avx512_bf16") {
    if (config.kv_dtype == DType::bf16) return {.q = kRoundBf16 * kRoundBf16, .p = kRoundBf16};
    return config.variant.f16_as_bf16 && config.kv_dtype == DType::f16
               ? Arithmetic{.q = kRoundBf16, .p = kRoundBf16, .kv = kRoundBf16}
               : Arithmetic{};
  }
  if (target != "amx") return {};
  const auto cap = static_cast<double>(config.variant.logits_soft_cap);
  if (config.kv_dtype == DType::bf16) return {.q = kRoundBf16, .p = kRoundBf16, .cap = 4e-6 * cap};
  if (config.kv_dtype == DType::f32) return {};
  if (!config.variant.f16_as_bf16) return {.cap = 4e-7 * cap};
  return {.q = kRoundBf16, .p = kRoundBf16, .kv = kRoundBf16, .cap = 4e-6 * cap};
}

}  // namespace pagedkv::testing
