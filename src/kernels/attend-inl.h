// The generic attention kernel: one task over blocks of 64 keys with an online softmax. Compiled once a target.
//
// Layer: kernels. Shape of the work: q [rows * group][head_dim] f32 (already scaled); for each block, K gives scores
// [rows * group][64], the softmax turns them into weights, V gives the output. K and V are read as slabs of some
// dims in f32 or, by a few rows, as they are stored.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "core/align.h"
#include "format/convert.h"
#include "hwy/highway.h"
#include "kernels/attend.h"
#include "kernels/block.h"
#include "kernels/logits-inl.h"
#include "kernels/softmax-inl.h"
#include "kernels/stored-inl.h"
#include "kernels/tile-inl.h"

#if defined(PAGEDKV_KERNELS_ATTEND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEDKV_KERNELS_ATTEND_INL_H_
#undef PAGEDKV_KERNELS_ATTEND_INL_H_
#else
#define PAGEDKV_KERNELS_ATTEND_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using format::HWY_NAMESPACE::CodecF32;
using format::HWY_NAMESPACE::convert_elements;
using format::HWY_NAMESPACE::with_codec;

/// One task at work: its scratch, cut into arrays, and the steps over a block.
class Attention {
 public:
  Attention(const AttendParams& params, const AttendTask& task, const StoredRows& stored, std::byte* scratch)
      : params_(params), task_(task), layout_(params, stored.many, task.num_rows), stored_(stored) {
    q_ = reinterpret_cast<float*>(scratch);
    out_ = q_ + layout_.q_floats;
    scores_ = out_ + layout_.out_floats;
    largest_ = scores_ + layout_.score_floats;
    sum_ = largest_ + layout_.rows;
    decay_ = sum_ + layout_.rows;
    slab_ = decay_ + layout_.rows;
    zeros_ = slab_ + layout_.slab_floats;
  }

  static std::size_t scratch_bytes(const AttendParams& params, const StoredRows& stored, std::int32_t max_rows) {
    const Layout layout(params, stored.many, max_rows);
    return sizeof(float) * (layout.q_floats + layout.out_floats + layout.score_floats + 3 * layout.rows +
                            layout.slab_floats + layout.out_stride);
  }

  HWY_INLINE void run() {
    if (task_.kv_begin >= task_.kv_end) begin();
    RowsAhead ahead[2];  // of the next block, whose rows are prefetched, and of the one after it
    find_rows_ahead(ahead[0], params_, task_, task_.kv_begin, 1);
    std::size_t i = 0;
    for (std::int64_t key = task_.kv_begin; key < task_.kv_end; i ^= 1) {
      Block block;
      block.gather(params_, task_, key);
      find_rows_ahead(ahead[i ^ 1], params_, task_, key, 2);
      const bool is_first = key == task_.kv_begin, is_last = block.begin + kBlockKeys >= task_.kv_end;
      const Rows rows = rows_that_see(block);
      const std::size_t seams = std::size_t{is_first} + std::size_t{is_last};
      if (is_last) add_queries_and_outputs(ahead[i]);
      if (rows.begin < rows.end) {
        prefetcher_.start(ahead[i], &ahead[i ^ 1],
                          steps(block, heads_before(rows.end - rows.begin)) + seams * layout_.heads * kSeamSteps,
                          work());
      }
      if (is_first) begin();
      if (rows.begin < rows.end) compute(block, rows);
      key = block.begin + kBlockKeys;
    }
    finish();
  }

 private:
  // Sizes of the arrays, each a multiple of 16 floats so that all of them stay aligned to a cache line.
  struct Layout {
    static constexpr std::size_t kAligned = 16;
    Layout(const AttendParams& params, const ManyRows& many, std::int32_t num_rows) {
      heads = static_cast<std::size_t>(num_rows) * params.group;
      rows = round_up(heads + kSoftmaxRows - 1, kAligned);
      out_stride = round_up(params.v_head_dim, kAligned);
      q_stride = round_up(params.head_dim, kAligned);
      const std::size_t whole_quads = round_up(heads, kQuad);
      term_floats = heads * round_up(params.head_dim, many.dims_per_unit * kSlabUnits) / many.dims_per_unit;
      q_floats = std::max(whole_quads * q_stride, many.query_terms * term_floats);
      out_floats = heads * out_stride;
      score_floats = whole_quads * static_cast<std::size_t>(kBlockKeys);
      slab_floats = std::max(static_cast<std::size_t>(kBlockKeys) * kSlabUnits, kMaxQuadKeys * q_stride);
    }
    std::size_t heads, rows, q_stride, out_stride, term_floats, q_floats, out_floats, score_floats, slab_floats;
  };

  std::size_t first_head() const { return std::size_t{task_.kv_head} * params_.group; }

  // Queries, times sm_scale unless scores will be; empty states.
  void begin() {
    std::fill_n(q_, layout_.q_floats, 0.0F);
    std::fill_n(slab_, layout_.q_stride, 0.0F);
    const std::size_t width = quads() != 0 ? kQuad : kLanes;
    const std::size_t stride = quads() != 0 ? quads() * kLanes : layout_.heads * kLanes;
    for (std::size_t at = 0; at < layout_.heads; ++at) {
      const auto row = static_cast<std::size_t>(query_row(task_, row_of(at)));
      const std::size_t from = (row * params_.num_q_heads + first_head() + at % params_.group) * params_.head_dim;
      prefetch_at_seam();
      load_query(from);
      if (is_few()) {
        stored_.spread_query(slab_, params_.head_dim, width, q_ + at * width, stride);
      } else {
        stored_.many.store_query(slab_, params_.head_dim, q_slab(at, 0), layout_.heads * kSlabUnits,
                                 layout_.term_floats);
      }
    }
    std::fill_n(out_, layout_.out_floats, 0.0F);
    std::fill_n(largest_, layout_.rows, kMinusInfinity);
    std::fill_n(sum_, 2 * layout_.rows, 0.0F);  // and decay_
    std::fill_n(zeros_, layout_.out_stride, 0.0F);
  }

  // Of many rows: the query row of a (row, head) pair from `unit` on, a multiple of kSlabUnits. kSlabUnits from one to
  // the next.
  float* q_slab(std::size_t at, std::size_t unit) const { return q_ + unit * layout_.heads + at * kSlabUnits; }

  // Few rows always multiply in f32.
  bool scales_scores() const { return stored_.many.scales_scores && !is_few(); }

  // A row of queries as f32 to the slab.
  void load_query(std::size_t from) const {
    with_codec(params_.q_dtype, [&]<class Codec>(Codec) HWY_ATTR {
      const auto* const elements = static_cast<const typename Codec::Stored*>(params_.q) + from;
      const F32 d;
      const float factor = scales_scores() ? 1.0F : params_.sm_scale;
      const VecF32 scale = hn::Set(d, factor);
      std::size_t i = 0;
      for (; i + kLanes <= params_.head_dim; i += kLanes) {
        hn::StoreU(hn::Mul(Codec::load(elements + i), scale), d, slab_ + i);
      }
      for (; i < params_.head_dim; ++i) slab_[i] = format::to_f32(elements[i]) * factor;
    });
  }

  // Row of a (row, head) pair of the task.
  std::int32_t row_of(std::size_t at) const { return static_cast<std::int32_t>(at / params_.group); }

  // Keys of the block that a row sees by causality and window.
  Span visible(const Block& block, std::int32_t row) const {
    Span keys = {block.first, block.last};
    if (task_.rows != nullptr) return keys;
    const std::int64_t at = query_position(task_, row) - block.begin;
    if (params_.causal) keys.last = std::min(keys.last, at + 1);
    if (params_.window_left >= 0) keys.first = std::max(keys.first, at - params_.window_left);
    return keys;
  }

  // Some rows of the task that follow each other.
  struct Rows {
    std::int32_t begin, end;
  };

  Rows rows_that_see(const Block& block) const {
    // They are consecutive: positions rise with rows.
    Rows rows = {0, task_.num_rows};
    while (rows.begin < rows.end && is_empty(visible(block, rows.begin))) ++rows.begin;
    while (rows.end > rows.begin && is_empty(visible(block, rows.end - 1))) --rows.end;
    return rows;
  }

  // (Row, head) pairs of the task before that row.
  std::size_t heads_before(std::int32_t row) const { return static_cast<std::size_t>(row) * params_.group; }

  void compute(Block& block, Rows rows) {
    const std::size_t begin = heads_before(rows.begin), end = heads_before(rows.end);
    score(block, prefetcher_, begin, end);
    const bool has_mask = params_.mask_kind != MaskKind::kNone;
    const bool is_shaped = params_.logits_soft_cap > 0 || params_.alibi_slopes != nullptr || has_mask;
    bool is_masked = false;
    for (std::size_t at = begin; at < end;) {
      const Span keys = visible(block, row_of(at));
      const std::size_t count = same_keys(block, keys, at, std::min(kSoftmaxRows, end - at));
      for (std::size_t i = at; is_shaped && i < at + count; ++i) is_masked = shape_scores(block, i, keys) || is_masked;
      with_rows<kSoftmaxRows>(count, [&](auto rows_at_once) HWY_ATTR { weigh<rows_at_once()>(at, keys); });
      at += count;
    }
    const std::uint64_t exceptions = is_masked ? set_exceptions_aside(block) : 0;
    accumulate(block, prefetcher_, begin, end);
    if (exceptions != 0) [[unlikely]]
      add_exceptions(block, exceptions, begin, end);
  }

  // What the end of this task writes and the begin of the next one reads: rows that are far apart, so that no stream of
  // the hardware covers them.
  void add_queries_and_outputs(RowsAhead& ahead) const {
    if (task_.partial_out == nullptr) add_rows(ahead, task_, params_.out, params_.out_dtype, params_.v_head_dim);
    if (task_.next != nullptr) add_rows(ahead, *task_.next, params_.q, params_.q_dtype, params_.head_dim);
  }

  // Rows [rows][num_q_heads][dims] of a task: the heads of its group.
  void add_rows(RowsAhead& ahead, const AttendTask& of, const void* base, DType dtype, std::size_t dims) const {
    const std::size_t head_bytes = dims * size_of(dtype), first = std::size_t{of.kv_head} * params_.group;
    for (std::int32_t row = 0; row < of.num_rows && !ahead.is_full(); ++row) {
      const std::size_t head = static_cast<std::size_t>(query_row(of, row)) * params_.num_q_heads + first;
      ahead.add(static_cast<const std::byte*>(base) + head * head_bytes,
                static_cast<std::int64_t>(params_.group * head_bytes));
    }
  }

  // Where a task begins or ends the prefetcher goes on, so that memory is kept busy.
  static constexpr std::size_t kSeamSteps = 4;  // a row and head
  void prefetch_at_seam() {
    for (std::size_t i = 0; i < kSeamSteps; ++i) prefetcher_.step();
  }

  // A mask may hide a key from some rows of a tile by weight 0, which an infinity or a NaN in V would turn into NaN:
  // such rows of V become zeros, to be added by themselves. Returns their keys as bits.
  std::uint64_t set_exceptions_aside(Block& block) {
    const std::uint64_t exceptions = stored_.find_exceptions(block, params_.v_head_dim);
    for (std::uint64_t left = exceptions; left != 0; left &= left - 1) {
      const int key = std::countr_zero(left);
      exceptions_[key] = std::exchange(block.v[key], reinterpret_cast<const std::byte*>(zeros_));
    }
    return exceptions;
  }

  // Adds the rows of V that were set aside to the rows that give them weight.
  void add_exceptions(const Block& block, std::uint64_t exceptions, std::size_t begin, std::size_t end) {
    if (is_few()) change_order(stored_.from_parts, begin, end);
    for (; exceptions != 0; exceptions &= exceptions - 1) {
      const int key = std::countr_zero(exceptions);
      for (std::size_t at = begin; at < end; ++at) {
        const Span keys = visible(block, row_of(at));
        const float weight = scores_[at * kBlockKeys + static_cast<std::size_t>(key)];
        if (key < keys.first || key >= keys.last || weight == 0) continue;
        float* const out = out_ + at * layout_.out_stride;
        for (std::size_t dim = 0; dim < params_.v_head_dim; ++dim) {
          out[dim] += weight * format::load_element(exceptions_[key], dim, params_.kv_dtype);
        }
      }
    }
    if (is_few()) change_order(stored_.to_parts, begin, end);
  }

  // Between the order of dims and parts, for the sums of some rows.
  void change_order(void (*change)(float* row, std::size_t dims) noexcept, std::size_t begin, std::size_t end) {
    for (std::size_t at = begin; at < end; ++at) change(out_ + at * layout_.out_stride, params_.v_head_dim);
  }

  static bool is_empty(Span keys) { return keys.first >= keys.last; }

  // Tasks of a few rows (decode) read K and V as they are stored; their queries and sums are in parts.
  bool is_few() const { return layout_.heads <= stored_.max_few_rows; }

  // Of all rows of a task whose scores are computed in quads, else 0.
  std::size_t quads() const { return is_few() ? quads_of(layout_.heads) : 0; }

  Work work() const { return layout_.heads == 1 ? stored_.work_of_one : Work::kMixed; }

  // About how many steps of the prefetcher the work on a block takes.
  std::size_t steps(const Block& block, std::size_t rows) const {
    const std::size_t keys = static_cast<std::size_t>(block.last - block.first);
    if (is_few()) return steps_of_few(keys, params_.head_dim, params_.v_head_dim, rows, quads());
    const ManyRows& many = stored_.many;
    const std::size_t key_vectors = (keys + kLanes - 1) / kLanes;
    const std::size_t transposed = key_vectors * params_.head_dim * size_of(params_.kv_dtype) / (4 * kTileUnits);
    const std::size_t tiles = (rows + kMaxTileRows - 1) / kMaxTileRows;
    const std::size_t panel = tile_panel(rows / tiles);
    const std::size_t weighed = tiles * ((params_.v_head_dim + panel - 1) / panel) * keys / kStepLength;
    const std::size_t scored = tiles * ((keys + panel - 1) / panel) * params_.head_dim / kStepLength;
    const std::size_t packed = (params_.v_head_dim + many.value_dims - 1) / many.value_dims * keys / kPackedKeys;
    return transposed + packed + (scored + weighed) / many.dims_per_unit;
  }

  void score(const Block& block, Prefetcher& prefetcher, std::size_t begin, std::size_t end) {
    const std::size_t dim_count = params_.head_dim;
    if (quads() != 0) return stored_.score_in_quads(block, dim_count, q_, quads(), slab_, scores_, prefetcher);
    if (is_few()) {
      return stored_.score_few(block, dim_count, q_ + begin * kLanes, layout_.heads * kLanes, end - begin,
                               scores_ + begin * kBlockKeys, prefetcher);
    }
    const ManyRows& many = stored_.many;
    const Span keys = {block.first, block.last};
    const std::size_t slab_dims = many.dims_per_unit * kSlabUnits;
    const std::size_t term_stride = many.query_terms > 1 ? layout_.term_floats : 0;
    for (std::size_t dim = 0; dim < dim_count; dim += slab_dims) {
      const std::size_t dims = std::min(slab_dims, dim_count - dim);
      const std::size_t units = (dims + many.dims_per_unit - 1) / many.dims_per_unit;
      const float scale = dim + dims == dim_count ? params_.sm_scale : 1.0F;
      many.pack_keys(block, dim, dims, slab_, prefetcher);
      for (std::size_t at = begin; at < end;) {
        const std::size_t rows = next_tile(end - at);
        many.score(rows, q_slab(at, dim / many.dims_per_unit), term_stride, slab_, units, keys,
                   scores_ + at * kBlockKeys, dim != 0, scale, prefetcher);
        at += rows;
      }
    }
  }

  // out = out * decay + weights * V. Rows of one position share their keys, so that a key that a row does not see is
  // never multiplied into it, not even by 0 (it might be infinite).
  void accumulate(const Block& block, Prefetcher& prefetcher, std::size_t begin, std::size_t end) {
    const std::size_t dim_count = params_.v_head_dim;
    if (is_few()) {
      for (std::size_t at = begin; at < end;) {
        const Span keys = visible(block, row_of(at));
        const std::size_t rows = same_keys(block, keys, at, end - at);
        stored_.weigh_few(block, keys, dim_count, scores_ + at * kBlockKeys, decay_ + at, rows,
                          out_ + at * layout_.out_stride, layout_.out_stride, prefetcher);
        at += rows;
      }
      return;
    }
    const ManyRows& many = stored_.many;
    for (std::size_t dim = 0; dim < dim_count; dim += many.value_dims) {
      const std::size_t dims = std::min(many.value_dims, dim_count - dim);
      many.pack_values(block, dim, dims, slab_, prefetcher);
      for (std::size_t at = begin; at < end;) {
        const Span keys = visible(block, row_of(at));
        const std::size_t rows = same_keys(block, keys, at, next_tile(end - at));
        many.weigh(rows, scores_ + at * kBlockKeys, keys, slab_, dims, decay_ + at,
                   out_ + at * layout_.out_stride + dim, layout_.out_stride, prefetcher);
        at += rows;
      }
    }
  }

  // How many of the `rows` rows from `at` on see exactly `keys`.
  std::size_t same_keys(const Block& block, Span keys, std::size_t at, std::size_t rows) const {
    for (;; --rows) {
      const Span last = visible(block, row_of(at + rows - 1));
      if (rows == 1 || (last.first == keys.first && last.last == keys.last)) return rows;
    }
  }

  // Soft cap, ALiBi and mask on the visible scores of one row and head, in this order. Returns whether the mask changed
  // any.
  bool shape_scores(const Block& block, std::size_t at, Span keys) {
    float* const scores = scores_ + at * kBlockKeys;
    const std::int32_t row = row_of(at);
    const std::size_t g = at % params_.group;
    if (params_.logits_soft_cap > 0) cap_scores(scores, keys, params_.logits_soft_cap);
    if (params_.alibi_slopes != nullptr) {
      add_alibi(scores, keys, params_.alibi_slopes[first_head() + g], block.begin - query_position(task_, row));
    }
    if (params_.mask_kind == MaskKind::kNone) return false;
    const std::int64_t entry = mask_entry(params_, task_, row, static_cast<std::int64_t>(g)) + block.begin;
    return mask_scores(scores, keys, params_.mask_kind, task_.mask, entry);
  }

  // One step of the online softmax for rows that see the same keys: scores become weights, in place.
  template <std::size_t kRows>
  void weigh(std::size_t at, Span keys) {
    float* const scores = scores_ + at * kBlockKeys;
    const SoftmaxRows state = {largest_ + at, sum_ + at, decay_ + at};
    if (is_whole(keys)) return weigh_rows<kRows>(scores, std::size_t{kBlockKeys} / kLanes, state);
    constexpr auto lanes = static_cast<std::int64_t>(kLanes);
    const std::int64_t first = keys.first / lanes * lanes, last = (keys.last + lanes - 1) / lanes * lanes;
    for (std::size_t r = 0; r < kRows; ++r) {
      float* const row = scores + r * kBlockKeys;
      std::fill(row + first, row + keys.first, kMinusInfinity);
      std::fill(row + keys.last, row + last, kMinusInfinity);
    }
    weigh_rows<kRows>(scores + first, static_cast<std::size_t>(last - first) / kLanes, state);
  }

  // Sinks, normalisation and the way out.
  void finish() {
    if (is_few()) change_order(stored_.from_parts, 0, layout_.heads);
    for (std::int32_t row = 0; row < task_.num_rows; ++row) {
      for (std::uint32_t g = 0; g < params_.group; ++g) {
        const std::size_t at = heads_before(row) + g;
        const float lse = normalise(at, g);
        prefetch_at_seam();
        const float* const from = out_ + at * layout_.out_stride;
        if (task_.partial_out != nullptr) {
          std::copy_n(from, params_.v_head_dim, task_.partial_out + at * params_.v_head_dim);
          task_.partial_lse[at] = lse;
          continue;
        }
        const std::size_t index =
            static_cast<std::size_t>(query_row(task_, row)) * params_.num_q_heads + first_head() + g;
        store_row(from, index * params_.v_head_dim);
        if (params_.lse != nullptr) params_.lse[index] = lse;
      }
    }
  }

  float normalise(std::size_t at, std::uint32_t g) {
    float scale = 1.0F;
    if (params_.sinks != nullptr && task_.first_part && params_.sinks[first_head() + g] != kMinusInfinity) {
      const float sink = params_.sinks[first_head() + g], before = largest_[at];
      largest_[at] = std::max(before, sink);
      scale = std::exp(before - largest_[at]);
      sum_[at] = sum_[at] * scale + std::exp(sink - largest_[at]);
    }
    if (sum_[at] == 0) return kMinusInfinity;  // a row that saw no key: out_ is zeros already
    scale /= sum_[at];
    float* const out = out_ + at * layout_.out_stride;
    for (std::size_t dim = 0; dim < params_.v_head_dim; ++dim) out[dim] *= scale;
    return largest_[at] + std::log(sum_[at]);
  }

  void store_row(const float* from, std::size_t to) const {
    with_codec(params_.out_dtype, [&]<class Codec>(Codec) HWY_ATTR {
      convert_elements<CodecF32, Codec>(from, params_.v_head_dim,
                                        static_cast<typename Codec::Stored*>(params_.out) + to);
    });
  }

  const AttendParams& params_;
  const AttendTask& task_;
  const Layout layout_;
  const StoredRows stored_;
  float* q_;        // [terms][slabs][rows * group][kSlabUnits]; of a few rows [vectors][rows * group][kLanes] or
                    // [head_dim / 4][quads][kLanes]
  float* out_;      // [rows * group][layout_.out_stride]
  float* scores_;   // [rows * group][kBlockKeys]
  float* largest_;  // [rows * group] largest logit so far
  float* sum_;      // [rows * group] sum of e^(logit - largest)
  float* decay_;    // [rows * group] what the step at hand multiplies earlier sums by
  float* slab_;     // of K or V as ManyRows has them, [8][layout_.q_stride] of K, or a query
  float* zeros_;    // [layout_.out_stride], a row of V in any format
  const std::byte* exceptions_[kBlockKeys];  // rows of V that were set aside
  Prefetcher prefetcher_{cpu::prefetch_order()};
};

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // PAGEDKV_KERNELS_ATTEND_INL_H_
