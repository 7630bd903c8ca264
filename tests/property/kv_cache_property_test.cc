// Random operations on a KvCache of a few pages, against a naive model: every row, page count, refusal and output.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "kv_cache_model.h"
#include "pagedkv/kv_cache.h"
#include "pagedkv/reference.h"

namespace pagedkv::testing {
namespace {

constexpr std::uint32_t kLayers = 2, kQHeads = 4, kKvHeads = 2, kHeadDim = 5, kVHeadDim = 3;
constexpr std::size_t kKWidth = kKvHeads * kHeadDim, kVWidth = kKvHeads * kVHeadDim;

enum class OpKind { kOpen, kClose, kDrop, kFork, kTruncate, kBegin, kFinish };

struct Op {
  OpKind kind;
  std::uint32_t a, b, c;
};

void showValue(const Op& op, std::ostream& os) {
  static constexpr const char* kNames[] = {"open", "close", "drop", "fork", "truncate", "begin", "finish"};
  os << kNames[static_cast<int>(op.kind)] << '(' << op.a << ',' << op.b << ',' << op.c << ')';
}

class Machine {
 public:
  Machine(std::uint32_t page_size, std::uint32_t capacity)
      : page_size_(page_size), capacity_(capacity), cache_(make(page_size, capacity)), pages_(page_size) {}

  void run(const Op& op) {
    switch (op.kind) {
      case OpKind::kOpen: open(); break;
      case OpKind::kClose: close(op.a); break;
      case OpKind::kDrop: drop(op.a); break;
      case OpKind::kFork: fork(op.a); break;
      case OpKind::kTruncate: truncate(op.a, op.b); break;
      case OpKind::kBegin: begin(op.a, op.b, op.c); break;
      case OpKind::kFinish: finish(op.a, op.b); break;
    }
    check();
  }

  void finish_all() {
    while (!steps_.empty()) finish(0, 0);
    sequences_.clear();
    RC_ASSERT(cache_.stats().pool.used_pages == 0u);
    RC_ASSERT(cache_.stats().open_sequences == 0u);
  }

 private:
  static KvCache make(std::uint32_t page_size, std::uint32_t capacity) {
    return KvCache::create({.shape = {.num_layers = kLayers,
                                      .num_q_heads = kQHeads,
                                      .num_kv_heads = kKvHeads,
                                      .head_dim = kHeadDim,
                                      .v_head_dim = kVHeadDim,
                                      .dtype = DType::f32},
                            .page_size = page_size,
                            .capacity_pages = capacity})
        .value();
  }

  void erase(std::uint32_t index) {
    sequences_.erase(sequences_.begin() + static_cast<std::ptrdiff_t>(index % sequences_.size()));
  }
  ModelSequence* pick(std::uint32_t index) {
    return sequences_.empty() ? nullptr : sequences_[index % sequences_.size()].get();
  }

  void open() {
    if (sequences_.size() >= 6) return;
    auto made = std::make_shared<ModelSequence>();
    made->sequence = cache_.open().value();
    sequences_.push_back(std::move(made));
  }

  void close(std::uint32_t index) {
    ModelSequence* s = pick(index);
    if (s == nullptr) return;
    const Result<void> closed = s->sequence.close();
    if (s->is_busy) {
      RC_ASSERT(closed.error() == Errc::kBusy);
    } else {
      RC_ASSERT(closed.has_value());
      erase(index);
    }
  }

  // Drops the handle, in a step too: the sequence then ends with the step.
  void drop(std::uint32_t index) {
    ModelSequence* s = pick(index);
    if (s == nullptr) return;
    s->sequence = Sequence();
    s->is_dropped = true;
    erase(index);
  }

  void fork(std::uint32_t index) {
    ModelSequence* s = pick(index);
    if (s == nullptr || sequences_.size() >= 6) return;
    Result<Sequence> forked = s->sequence.fork();
    RC_ASSERT(forked.has_value() != s->is_busy);
    if (!forked) return;
    auto made = std::make_shared<ModelSequence>();
    made->sequence = std::move(*forked);
    made->rows = s->rows;
    made->table = s->table;
    sequences_.push_back(std::move(made));
  }

  void truncate(std::uint32_t index, std::uint32_t amount) {
    ModelSequence* s = pick(index);
    if (s == nullptr) return;
    const std::size_t length = amount % (s->rows.size() + 2);  // one too many, sometimes
    const Result<void> truncated = s->sequence.truncate(length);
    RC_ASSERT(truncated.has_value() == (!s->is_busy && length <= s->rows.size()));
    if (!truncated) return;
    s->rows.resize(length);
    pages_.shrink(s->table, length);
  }

  // A step over the sequences that `mask` names, busy ones too, with some new tokens each.
  void begin(std::uint32_t mask, std::uint32_t count_seed, std::uint32_t how) {
    ModelStep made{.step = {}, .items = {}, .is_written = how % 4 != 0};
    std::vector<StepItem> wanted;
    bool any_busy = false;
    std::size_t num_pages = 0;
    const std::size_t used = ModelPages::count(sequences_, steps_);
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      if ((mask >> i & 1) == 0) continue;
      ModelSequence& s = *sequences_[i];
      const std::uint32_t num_new = 1 + (count_seed >> (3 * i)) % 5;
      wanted.push_back({&s.sequence, num_new, {}});
      any_busy = any_busy || s.is_busy;
      ModelStepItem item{.sequence = sequences_[i], .new_rows = {}, .after = {}};
      for (std::uint32_t r = 0; r < num_new; ++r) item.new_rows.push_back(next_row_++);
      if (!s.is_busy) item.after = pages_.grown(s, num_new, sequences_, steps_);
      for (std::size_t p = 0; p < item.after.size(); ++p) {
        num_pages += p >= s.table.size() || s.table[p] != item.after[p] ? 1u : 0u;
      }
      made.items.push_back(std::move(item));
    }
    const Result<std::uint64_t> needed = cache_.pages_needed(wanted);
    Result<Step> begun = cache_.begin_step(wanted);
    if (wanted.empty()) {
      RC_ASSERT(begun.error() == Errc::kInvalidArgument);
      return;
    }
    if (any_busy) {
      RC_ASSERT(needed.error() == Errc::kBusy);
      RC_ASSERT(begun.error() == Errc::kBusy);
      return;
    }
    RC_ASSERT(needed.has_value() && *needed == num_pages);
    if (used + num_pages > capacity_) {
      RC_ASSERT(begun.error() == Errc::kOutOfPages);
      return;
    }
    RC_ASSERT(begun.has_value());
    made.step = std::move(*begun);
    for (ModelStepItem& item : made.items) item.sequence->is_busy = true;
    if (made.is_written) write_and_attend(made);
    steps_.push_back(std::move(made));
  }

  void write_and_attend(ModelStep& made) {
    for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
      std::vector<float> k, v, q;
      for (const ModelStepItem& item : made.items) {
        for (const std::uint64_t row : item.new_rows) {
          push_row(k, kK, row, layer, kKWidth);
          push_row(v, kV, row, layer, kVWidth);
          push_row(q, kQ, row, layer, kQHeads * kHeadDim);
        }
      }
      std::vector<float> out(made.step.num_rows() * kQHeads * kVHeadDim, NAN), lse(made.step.num_rows() * kQHeads, NAN);
      RC_ASSERT(made.step.write(layer, k, v).has_value());
      RC_ASSERT(made.step.attend(layer, q, out, lse).has_value());
      compare_attention(made, layer, q, out, lse);
    }
  }

  // The oracle over dense copies of the model's rows, one page a row.
  void compare_attention(const ModelStep& made, std::uint32_t layer, const std::vector<float>& q,
                         const std::vector<float>& out, const std::vector<float>& lse) const {
    std::vector<float> k, v;
    std::vector<std::int32_t> qo_indptr{0}, kv_indptr{0}, last_page_len;
    for (const ModelStepItem& item : made.items) {
      std::vector<std::uint64_t> rows = item.sequence->rows;
      rows.insert(rows.end(), item.new_rows.begin(), item.new_rows.end());
      for (const std::uint64_t row : rows) {
        push_row(k, kK, row, layer, kKWidth);
        push_row(v, kV, row, layer, kVWidth);
      }
      qo_indptr.push_back(qo_indptr.back() + static_cast<std::int32_t>(item.new_rows.size()));
      kv_indptr.push_back(kv_indptr.back() + static_cast<std::int32_t>(rows.size()));
      last_page_len.push_back(1);
    }
    std::vector<std::int32_t> indices(static_cast<std::size_t>(kv_indptr.back()));
    std::iota(indices.begin(), indices.end(), 0);
    const KvView view{.k = k.data(),
                      .v = v.data(),
                      .k_page_stride = kKWidth * 4,
                      .k_head_stride = kHeadDim * 4,
                      .k_token_stride = kKWidth * 4,
                      .v_page_stride = kVWidth * 4,
                      .v_head_stride = kVHeadDim * 4,
                      .v_token_stride = kVWidth * 4,
                      .num_pages = kv_indptr.back()};
    const AttentionConfig config{.num_q_heads = kQHeads,
                                 .num_kv_heads = kKvHeads,
                                 .head_dim = kHeadDim,
                                 .v_head_dim = kVHeadDim,
                                 .page_size = 1,
                                 .kv_dtype = DType::f32};
    std::vector<double> want(out.size()), want_lse(lse.size());
    const Result<void> done = reference_attention(
        config,
        {.qo_indptr = qo_indptr, .kv_indptr = kv_indptr, .kv_indices = indices, .kv_last_page_len = last_page_len},
        view, q, want, want_lse);
    RC_ASSERT(done.has_value());
    for (std::size_t i = 0; i < out.size(); ++i) RC_ASSERT(std::abs(static_cast<double>(out[i]) - want[i]) < 1e-5);
    for (std::size_t i = 0; i < lse.size(); ++i) RC_ASSERT(std::abs(static_cast<double>(lse[i]) - want_lse[i]) < 1e-5);
  }

  // Commits all, commits a part, rolls back, or drops a step.
  void finish(std::uint32_t index, std::uint32_t how) {
    if (steps_.empty()) return;
    const auto at = steps_.begin() + index % static_cast<std::uint32_t>(steps_.size());
    if (!at->is_written) how |= 2;
    std::vector<std::uint32_t> accepted;
    for (const ModelStepItem& item : at->items) {
      const auto all = static_cast<std::uint32_t>(item.new_rows.size());
      accepted.push_back(how % 4 == 0 ? all : how % 4 == 1 ? (how >> 2) % (all + 1) : 0);
    }
    if (how % 4 == 0) RC_ASSERT(at->step.commit().has_value());
    if (how % 4 == 1) RC_ASSERT(at->step.commit(accepted).has_value());
    if (how % 4 == 2) at->step.rollback();
    if (how % 4 == 2) RC_ASSERT(at->step.commit().error() == Errc::kClosed);
    for (std::size_t i = 0; i < at->items.size(); ++i) {
      ModelSequence& s = *at->items[i].sequence;
      s.is_busy = false;
      if (accepted[i] == 0) continue;
      const auto& rows = at->items[i].new_rows;
      s.rows.insert(s.rows.end(), rows.begin(), rows.begin() + accepted[i]);
      s.table = at->items[i].after;
      pages_.shrink(s.table, s.rows.size());
    }
    steps_.erase(at);
  }

  void check() {
    const CacheStats stats = cache_.stats();
    RC_ASSERT(stats.pool.used_pages == ModelPages::count(sequences_, steps_));
    RC_ASSERT(cache_.pages_available() == capacity_ - stats.pool.used_pages);
    for (const auto& s : sequences_) {
      RC_ASSERT(s->sequence.num_tokens() == s->rows.size());
      if (!s->is_busy) RC_ASSERT(s->sequence.pages().size() == s->table.size());
      for (std::uint32_t layer = 0; layer < kLayers; ++layer) check_rows(*s, layer);
    }
  }

  // Held rows lie in the pages, bit for bit, in a step too.
  void check_rows(const ModelSequence& s, std::uint32_t layer) {
    const KvView view = cache_.view(layer).value();
    for (std::size_t t = 0; t < s.rows.size(); ++t) {
      const std::int64_t page = to_index(s.sequence.pages()[t / page_size_]);
      const auto slot = static_cast<std::int64_t>(t % page_size_);
      std::vector<float> k, v;
      push_row(k, kK, s.rows[t], layer, kKWidth);
      push_row(v, kV, s.rows[t], layer, kVWidth);
      for (std::int64_t head = 0; head < kKvHeads; ++head) {
        const auto* k_row = static_cast<const std::byte*>(view.k) + page * view.k_page_stride +
                            head * view.k_head_stride + slot * view.k_token_stride;
        const auto* v_row = static_cast<const std::byte*>(view.v) + page * view.v_page_stride +
                            head * view.v_head_stride + slot * view.v_token_stride;
        RC_ASSERT(std::memcmp(k_row, k.data() + head * kHeadDim, kHeadDim * 4) == 0);
        RC_ASSERT(std::memcmp(v_row, v.data() + head * kVHeadDim, kVHeadDim * 4) == 0);
      }
    }
  }

  std::uint32_t page_size_, capacity_;
  KvCache cache_;
  ModelPages pages_;
  std::vector<std::shared_ptr<ModelSequence>> sequences_;
  std::vector<ModelStep> steps_;
  std::uint64_t next_row_ = 0;
};

rc::Gen<Op> any_op() {
  const auto number = rc::gen::inRange<std::uint32_t>(0, 1u << 20);
  const auto kind = rc::gen::weightedElement<OpKind>({{2, OpKind::kOpen},
                                                      {1, OpKind::kClose},
                                                      {1, OpKind::kDrop},
                                                      {2, OpKind::kFork},
                                                      {2, OpKind::kTruncate},
                                                      {8, OpKind::kBegin},
                                                      {7, OpKind::kFinish}});
  return rc::gen::construct<Op>(kind, number, number, number);
}

RC_GTEST_PROP(KvCache, BehavesAsVectorsOfRowsUnderRandomOperations, ()) {
  const auto page_size = *rc::gen::inRange<std::uint32_t>(1, 6);
  const auto capacity = *rc::gen::inRange<std::uint32_t>(1, 24);
  const auto ops = *rc::gen::scale(3.0, rc::gen::container<std::vector<Op>>(any_op()));
  Machine machine(page_size, capacity);
  for (const Op& op : ops) machine.run(op);
  machine.finish_all();
}

}  // namespace
}  // namespace pagedkv::testing
