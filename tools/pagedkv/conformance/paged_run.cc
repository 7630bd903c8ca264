// Pool, sequences, written rows, plan, run, and the pages read back.
#include "conformance/paged_run.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <span>

#include "pagedkv/attention.h"
#include "pagedkv/page_pool.h"
#include "pagedkv/reference.h"
#include "pagedkv/sequence.h"
#include "tool.h"

namespace pagedkv::tool {
namespace {

/// Pages as [kv_head][K, V][token][dim], the order of the library's own cache.
class PagedRun {
 public:
  PagedRun(const OnnxCase& c, std::uint32_t page_size, std::string_view target, std::uint64_t seed)
      : case_(c), page_size_(page_size), pool_(make_pool(c, page_size)), store_(make_store(pool_, page_size)) {
    config_.num_q_heads = static_cast<std::uint32_t>(c.q_heads);
    config_.num_kv_heads = static_cast<std::uint32_t>(c.kv_heads);
    config_.head_dim = static_cast<std::uint32_t>(c.head_dim);
    config_.v_head_dim = static_cast<std::uint32_t>(c.v_head_dim);
    config_.page_size = page_size;
    config_.kv_dtype = c.dtype;
    config_.variant.sm_scale = c.scale;
    config_.variant.causal = c.causal;
    config_.variant.logits_soft_cap = c.soft_cap;
    config_.target = target;
    poison_and_shuffle(seed);
  }

  /// Appends the past, then the new tokens, to one sequence a batch entry, as two steps of a server would.
  void append_tokens() {
    for (std::int64_t b = 0; b < case_.batch; ++b) {
      sequences_.push_back(value_or_bad_input(store_.open(), "opening a sequence"));
      const std::int64_t length = case_.kv_lens[static_cast<std::size_t>(b)];
      if (case_.past_k) append(b, *case_.past_k, *case_.past_v, case_.past_len);
      append(b, case_.k, case_.v, length - case_.past_len);
    }
  }

  /// Fills `output.y`, and the scores if the case wants them, or says why the library does not support the case.
  void attend(PagedOutput& output) {
    const BatchArrays arrays = make_batch();
    Result<AttentionPlan> plan = AttentionPlan::create(config_, arrays.batch);
    if (!plan && plan.error() == Errc::kUnsupported) {
      output.unsupported = plan.error().what;
      return;
    }
    const AttentionPlan planned = value_or_bad_input(std::move(plan), "planning");
    const auto num_outputs = static_cast<std::size_t>(case_.y.num_elements());
    std::vector<std::byte> y(num_outputs * size_of(case_.y.dtype));
    value_or_bad_input(planned.run(view(), queries(), {y.data(), num_outputs, case_.y.dtype}), "attending");
    for (std::size_t i = 0; i < y.size(); i += size_of(case_.y.dtype)) {
      output.y.push_back(to_float(case_.y.dtype, y.data() + i));
    }
    if (case_.scores) output.scores = scores(arrays.batch);
  }

  /// K or V of all tokens. Shape: [batch][total_len][kv_heads][dim].
  [[nodiscard]] std::vector<float> read_back(bool values) const {
    const std::int64_t dim = values ? case_.v_head_dim : case_.head_dim;
    std::vector<float> rows;
    for (const Sequence& sequence : sequences_) {
      for (std::uint64_t t = 0; t < sequence.num_tokens(); ++t) {
        const std::byte* page = pool_.page_data(sequence.pages()[t / config_.page_size]);
        for (std::int64_t h = 0; h < case_.kv_heads; ++h) {
          const std::int64_t at = h * head_stride() + (values ? v_offset() : 0) +
                                  static_cast<std::int64_t>(t % config_.page_size) * dim * element_bytes();
          for (std::int64_t d = 0; d < dim; ++d) {
            rows.push_back(to_float(case_.dtype, page + at + d * element_bytes()));
          }
        }
      }
    }
    return rows;
  }

 private:
  /// A batch and the arrays that it borrows.
  struct BatchArrays {
    std::vector<std::int32_t> qo_indptr, block_table, seq_lens, q_start;
    std::vector<std::int64_t> mask_offsets, mask_row_strides, mask_head_strides;
    AttentionBatch batch;
  };

  [[nodiscard]] BatchArrays make_batch() const {
    BatchArrays a;
    const auto batch_size = static_cast<std::size_t>(case_.batch);
    std::size_t stride = 1;
    for (const Sequence& sequence : sequences_) stride = std::max(stride, sequence.pages().size());
    a.block_table.assign(batch_size * stride, -1);
    a.qo_indptr = {0};
    for (std::size_t b = 0; b < batch_size; ++b) {
      const std::span<const PageId> pages = sequences_[b].pages();
      std::transform(pages.begin(), pages.end(), a.block_table.begin() + static_cast<std::ptrdiff_t>(b * stride),
                     to_index);
      a.qo_indptr.push_back(a.qo_indptr.back() + static_cast<std::int32_t>(case_.q_len));
      a.seq_lens.push_back(static_cast<std::int32_t>(case_.kv_lens[b]));
      a.q_start.push_back(static_cast<std::int32_t>(case_.causal ? case_.q_start[b] : 0));
    }
    a.batch = {.qo_indptr = a.qo_indptr,
               .block_table = a.block_table,
               .block_table_stride = static_cast<std::int64_t>(stride),
               .seq_lens = a.seq_lens,
               .q_start = a.q_start};
    if (!case_.mask) return a;
    const std::int64_t head_entries = case_.q_len * case_.total_len;
    for (std::int64_t b = 0; b < case_.batch; ++b) {
      a.mask_offsets.push_back(b * case_.mask->heads * head_entries);
      a.mask_row_strides.push_back(case_.total_len);
      a.mask_head_strides.push_back(case_.mask->heads == 1 ? 0 : head_entries);
    }
    a.batch.mask = {.kind = case_.mask->additive ? MaskKind::kAdditive : MaskKind::kBool,
                    .bytes = case_.mask->data,
                    .offsets = a.mask_offsets,
                    .row_strides = a.mask_row_strides,
                    .head_strides = a.mask_head_strides};
    return a;
  }

  /// Kernels never store scores; the oracle shows them, over the same pages and page tables.
  [[nodiscard]] std::vector<float> scores(const AttentionBatch& batch) const {
    std::vector<double> values(num_reference_scores(config_, batch));
    std::vector<double> out(static_cast<std::size_t>(case_.y.num_elements()));
    value_or_bad_input(
        reference_attention(config_, batch, view(), queries(), out, {}, {.stage = case_.score_stage, .values = values}),
        "computing scores");
    return {values.begin(), values.end()};
  }
  [[nodiscard]] ConstTensor queries() const {
    return {case_.q.data.data(), static_cast<std::size_t>(case_.q.num_elements()), case_.q.dtype};
  }

  static PagePool make_pool(const OnnxCase& c, std::uint32_t page_size) {
    const std::uint64_t pages_a_sequence = static_cast<std::uint64_t>(c.total_len) / page_size + 1;
    const std::uint64_t page_bytes =
        static_cast<std::uint64_t>(c.kv_heads * (c.head_dim + c.v_head_dim)) * page_size * size_of(c.dtype);
    const PagePoolOptions options{.page_bytes = (page_bytes + 63) / 64 * 64,
                                  .capacity_pages = static_cast<std::uint64_t>(c.batch) * pages_a_sequence + 3,
                                  .huge_pages = HugePages::kNever};
    return value_or_bad_input(PagePool::create(options), "creating the pool");
  }
  static SequenceStore make_store(PagePool& pool, std::uint32_t page_size) {
    return value_or_bad_input(SequenceStore::create(pool, page_size), "creating the sequences");
  }

  /// Takes every page once, fills it with bytes that are NaN in every format, and gives all back in random order.
  void poison_and_shuffle(std::uint64_t seed) {
    std::vector<PageId> ids(static_cast<std::size_t>(pool_.capacity_pages()));
    value_or_bad_input(pool_.allocate(ids), "allocating pages");
    for (const PageId id : ids) std::memset(pool_.page_data(id), 0xFF, static_cast<std::size_t>(pool_.page_bytes()));
    std::shuffle(ids.begin(), ids.end(), std::mt19937_64(seed));
    value_or_bad_input(pool_.release(ids), "releasing pages");
  }

  /// Appends the first `count` tokens of batch entry `b` of `k` and `v` to its sequence.
  void append(std::int64_t b, const Rows& k, const Rows& v, std::int64_t count) {
    if (count == 0) return;
    Sequence& sequence = sequences_.back();
    const std::uint64_t begin = sequence.num_tokens();
    value_or_bad_input(sequence.append(static_cast<std::uint32_t>(count)), "appending tokens");
    std::vector<std::int64_t> slots;
    for (std::uint64_t t = begin; t < sequence.num_tokens(); ++t) {
      const std::int64_t page = to_index(sequence.pages()[t / config_.page_size]);
      slots.push_back(page * page_size_ + static_cast<std::int64_t>(t % config_.page_size));
    }
    const auto rows = [b, count](const Rows& from) {
      return ConstTensor(from.data.data() + static_cast<std::size_t>(b) * from.entry_bytes(),
                         static_cast<std::size_t>(count * from.heads * from.dim), from.dtype);
    };
    value_or_bad_input(write_kv(config_, view(), slots, rows(k), rows(v)), "writing K and V");
  }

  [[nodiscard]] std::int64_t element_bytes() const { return static_cast<std::int64_t>(size_of(case_.dtype)); }
  [[nodiscard]] std::int64_t v_offset() const { return page_size_ * case_.head_dim * element_bytes(); }
  [[nodiscard]] std::int64_t head_stride() const {
    return page_size_ * (case_.head_dim + case_.v_head_dim) * element_bytes();
  }
  [[nodiscard]] KvWriteView view() const {
    const auto page_stride = static_cast<std::int64_t>(pool_.page_bytes());
    return {.k = pool_.base(),
            .v = pool_.base() + v_offset(),
            .k_page_stride = page_stride,
            .k_head_stride = head_stride(),
            .k_token_stride = case_.head_dim * element_bytes(),
            .v_page_stride = page_stride,
            .v_head_stride = head_stride(),
            .v_token_stride = case_.v_head_dim * element_bytes(),
            .num_pages = static_cast<std::int64_t>(pool_.capacity_pages())};
  }

  const OnnxCase& case_;
  std::int64_t page_size_;
  AttentionConfig config_;
  PagePool pool_;
  SequenceStore store_;
  std::vector<Sequence> sequences_;
};

}  // namespace

PagedOutput run_paged(const OnnxCase& c, std::uint32_t page_size, std::string_view target, std::uint64_t seed) {
  PagedOutput output;
  PagedRun paged(c, page_size, target, seed);
  paged.append_tokens();
  paged.attend(output);
  if (!output.unsupported.empty()) return output;
  if (c.present_k) output.present_k = paged.read_back(false);
  if (c.present_v) output.present_v = paged.read_back(true);
  return output;
}

}  // namespace pagedkv::tool
