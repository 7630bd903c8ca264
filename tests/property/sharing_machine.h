// Random operations on a KvCache with prefix sharing and windows, checked against what each token's rows must be.
//
// K, V and Q of a token are a hash of its tenant and of all tokens up to it: whoever holds a wrong, stale or foreign
// row is found out, in the pages and in the output of attention.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <ostream>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kv_cache_model.h"
#include "pagedkv/kv_cache.h"
#include "pagedkv/reference.h"

namespace pagedkv::testing {

/// What a machine runs on. `window` is that of layer 1; layers 0 and 2 see all keys, unless `all_slide`.
struct SharingCase {
  std::uint32_t page_size = 1, capacity = 8;
  std::int32_t window = -1;
  std::uint32_t sink_tokens = 0;  // seen beside the window
  bool all_slide = false;
  bool colliding_hash = false;
};

enum class SharingOpKind { kOpen, kClose, kFork, kTruncate, kStep, kPin, kUnpin, kClear, kTrim, kCapacity };
inline constexpr int kNumSharingOps = 10;

struct SharingOp {
  SharingOpKind kind;
  std::uint32_t a, b, c;
};

/// For RapidCheck.
inline void showValue(const SharingOp& op, std::ostream& os) {
  static constexpr const char* kNames[] = {"open", "close", "fork",  "truncate", "step",
                                           "pin",  "unpin", "clear", "trim",     "set_capacity"};
  os << kNames[static_cast<int>(op.kind)] << '(' << op.a << ',' << op.b << ',' << op.c << ')';
}

class SharingMachine {
 public:
  explicit SharingMachine(const SharingCase& shape) : shape_(shape), cache_(make(shape)) {}

  /// Throws std::logic_error with what was wrong.
  void run(const SharingOp& op) {
    switch (op.kind) {
      case SharingOpKind::kOpen: open(op.a, op.b, op.c); break;
      case SharingOpKind::kClose: close(op.a); break;
      case SharingOpKind::kFork: fork(op.a); break;
      case SharingOpKind::kTruncate: truncate(op.a, op.b); break;
      case SharingOpKind::kStep: step(op.a, op.b, op.c); break;
      case SharingOpKind::kPin: pin(op.a, op.b); break;
      case SharingOpKind::kUnpin: unpin(op.a); break;
      case SharingOpKind::kClear: cache_.clear_prefix_cache(); break;
      case SharingOpKind::kTrim: require(cache_.trim().has_value(), "trim"); break;
      case SharingOpKind::kCapacity: set_capacity(op.a); break;
    }
    const PoolStats pool = cache_.stats().pool;
    require(pool.used_pages + pool.evictable_pages + pool.free_pages == pool.capacity_pages, "counts add up");
  }

  void finish() {
    for (const Chat& chat : chats_) check_rows(chat);
    chats_.clear();
    for (const PinId pin : pins_) require(cache_.unpin(pin).has_value(), "unpin at the end");
    require(cache_.stats().pool.used_pages == 0, "nothing leaks");
    require(cache_.stats().open_sequences == 0, "nothing stays open");
  }

 private:
  static constexpr std::uint32_t kLayers = 3, kQHeads = 2, kDim = 4, kMaxLength = 40;

  struct Chat {
    Sequence sequence;
    std::uint32_t tenant = 0;
    std::vector<Token> ids;  // held, and what is known of the prompt beyond
    std::size_t held = 0;
  };

  static void require(bool condition, const char* what) {
    if (!condition) throw std::logic_error(what);
  }

  static std::uint64_t same_hash(const Token*, std::size_t, std::uint64_t) noexcept { return 7; }

  static KvCache make(const SharingCase& shape) {
    static constexpr std::uint32_t kFull[] = {0, 2}, kSliding[] = {1};
    const KvLayerGroup groups[] = {{kFull, -1}, {kSliding, shape.window, shape.sink_tokens}};
    KvCacheOptions options{.shape = {.num_layers = kLayers,
                                     .num_q_heads = kQHeads,
                                     .num_kv_heads = 1,
                                     .head_dim = kDim,
                                     .dtype = DType::f32},
                           .page_size = shape.page_size,
                           .capacity_pages = shape.capacity,
                           .max_capacity_pages = shape.capacity * 2};
    if (shape.all_slide) {
      options.attention.window_left = shape.window;
      options.attention.sink_tokens = shape.sink_tokens;
    }
    if (!shape.all_slide && shape.window >= 0) options.layer_groups = groups;
    if (shape.colliding_hash) options.prefix.hash = &same_hash;
    return KvCache::create(options).value();
  }

  [[nodiscard]] std::int32_t window_of(std::uint32_t layer) const {
    return shape_.all_slide || layer == 1 ? shape_.window : -1;
  }
  static const char* salt_of(std::uint32_t tenant) { return tenant == 0 ? "" : "tenant"; }

  /// What stands for the content of token `index`: all tokens up to it and the tenant.
  static std::uint64_t row_of(const Chat& chat, std::size_t index) {
    std::uint64_t x = chat.tenant + 1;
    for (std::size_t t = 0; t <= index; ++t) {
      x = (x ^ static_cast<std::uint64_t>(chat.ids[t] + 2)) * 0x9e3779b97f4a7c15u;
      x ^= x >> 31;
    }
    return x >> 20;
  }

  Chat* pick(std::uint32_t index) { return chats_.empty() ? nullptr : &chats_[index % chats_.size()]; }

  // Prompts of few different tokens, so that prefixes repeat.
  static std::vector<Token> prompt_of(std::uint32_t length, std::uint32_t bits) {
    std::vector<Token> ids(1 + length % (kMaxLength / 2));
    for (std::size_t t = 0; t < ids.size(); ++t) ids[t] = t % 5 == 4 ? static_cast<Token>(bits >> (t / 5) & 1) : 0;
    return ids;
  }

  void open(std::uint32_t length, std::uint32_t bits, std::uint32_t tenant) {
    if (chats_.size() >= 5) return;
    Chat chat;
    chat.ids = prompt_of(length, bits);
    chat.tenant = tenant % 2;
    Result<Sequence> opened = cache_.open(chat.ids, {.cache_salt = salt_of(chat.tenant)});
    require(opened.has_value(), "open");
    chat.sequence = std::move(*opened);
    chat.held = static_cast<std::size_t>(chat.sequence.num_tokens());
    require(chat.held < chat.ids.size(), "the last token of a prompt is computed");
    require(chat.sequence.cached_tokens() == chat.held, "cached tokens are held");
    check_rows(chat);
    chats_.push_back(std::move(chat));
  }

  void close(std::uint32_t index) {
    if (chats_.empty()) return;
    chats_.erase(chats_.begin() + static_cast<std::ptrdiff_t>(index % chats_.size()));
  }

  void fork(std::uint32_t index) {
    const Chat* parent = pick(index);
    if (parent == nullptr || chats_.size() >= 5) return;
    Chat child{.sequence = {}, .tenant = parent->tenant, .ids = parent->ids, .held = parent->held};
    child.sequence = pick(index)->sequence.fork().value();
    chats_.push_back(std::move(child));
  }

  void truncate(std::uint32_t index, std::uint32_t amount) {
    Chat* chat = pick(index);
    if (chat == nullptr) return;
    const std::size_t length = amount % (chat->held + 1);
    const Result<void> truncated = chat->sequence.truncate(length);
    require(truncated.has_value() || shape_.window >= 0, "truncate");  // else into what a window released
    if (!truncated) return;
    chat->held = length;
    chat->ids.resize(length);
    check_rows(*chat);
  }

  // A step over the chats that `mask` names: write, attend, and commit all, a part, or nothing.
  void step(std::uint32_t mask, std::uint32_t counts, std::uint32_t how) {
    std::vector<Chat*> batch;
    std::vector<std::vector<Token>> new_ids;
    for (std::size_t i = 0; i < chats_.size(); ++i) {
      Chat& chat = chats_[i];
      if ((mask >> i & 1) == 0 || chat.held + 4 > kMaxLength) continue;
      std::vector<Token> ids(1 + (counts >> (3 * i)) % 4);
      for (std::size_t t = 0; t < ids.size(); ++t) {
        const std::size_t at = chat.held + t;
        ids[t] = at < chat.ids.size() ? chat.ids[at] : static_cast<Token>(how >> t & 1);
      }
      batch.push_back(&chat);
      new_ids.push_back(std::move(ids));
    }
    if (batch.empty()) return;
    std::vector<StepItem> items;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      items.push_back({&batch[i]->sequence, static_cast<std::uint32_t>(new_ids[i].size()), new_ids[i]});
    }
    const std::uint64_t needed = cache_.pages_needed(items).value();
    const bool fits = needed <= cache_.pages_available();
    Result<Step> begun = cache_.begin_step(items);
    require(begun.has_value() == fits, "a step is refused when and only when pages lack");
    if (!begun) {
      for (const Chat* chat : batch) check_rows(*chat);
      return;
    }
    for (std::size_t i = 0; i < batch.size(); ++i) {
      batch[i]->ids.resize(std::max(batch[i]->ids.size(), batch[i]->held + new_ids[i].size()));
      std::copy(new_ids[i].begin(), new_ids[i].end(),
                batch[i]->ids.begin() + static_cast<std::ptrdiff_t>(batch[i]->held));
    }
    write_and_attend(*begun, batch, new_ids);
    finish_step(*begun, batch, new_ids, how >> 4);
  }

  void finish_step(Step& step, const std::vector<Chat*>& batch, const std::vector<std::vector<Token>>& new_ids,
                   std::uint32_t how) {
    std::vector<std::uint32_t> accepted;
    for (const auto& ids : new_ids) {
      const auto all = static_cast<std::uint32_t>(ids.size());
      accepted.push_back(how % 4 == 0 ? 0 : how % 4 == 1 ? (how >> 2) % (all + 1) : all);
    }
    if (how % 4 == 0) step.rollback();
    if (how % 4 == 1) require(step.commit(accepted).has_value(), "partial commit");
    if (how % 4 > 1) require(step.commit().has_value(), "commit");
    for (std::size_t i = 0; i < batch.size(); ++i) {
      Chat& chat = *batch[i];
      chat.held += accepted[i];
      const std::span<const Token> known = chat.sequence.tokens();
      require(known.size() >= chat.held && std::equal(known.begin(), known.end(), chat.ids.begin()), "ids are kept");
      chat.ids.resize(known.size());
      check_rows(chat);
    }
  }

  void write_and_attend(Step& step, const std::vector<Chat*>& batch, const std::vector<std::vector<Token>>& new_ids) {
    for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
      std::vector<float> k, v, q;
      for (std::size_t i = 0; i < batch.size(); ++i) {
        for (std::size_t t = 0; t < new_ids[i].size(); ++t) {
          const std::uint64_t row = row_of(*batch[i], batch[i]->held + t);
          push_row(k, kK, row, layer, kDim);
          push_row(v, kV, row, layer, kDim);
          push_row(q, kQ, row, layer, kQHeads * kDim);
        }
      }
      std::vector<float> out(q.size(), NAN);
      require(step.write(layer, k, v).has_value(), "write");
      require(step.attend(layer, q, out).has_value(), "attend");
      compare_attention(batch, new_ids, layer, q, out);
    }
  }

  // The oracle over dense copies of what the rows must be, one page a row.
  void compare_attention(const std::vector<Chat*>& batch, const std::vector<std::vector<Token>>& new_ids,
                         std::uint32_t layer, const std::vector<float>& q, const std::vector<float>& out) const {
    std::vector<float> k, v;
    std::vector<std::int32_t> qo_indptr{0}, kv_indptr{0};
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const std::size_t length = batch[i]->held + new_ids[i].size();
      for (std::size_t t = 0; t < length; ++t) {
        push_row(k, kK, row_of(*batch[i], t), layer, kDim);
        push_row(v, kV, row_of(*batch[i], t), layer, kDim);
      }
      qo_indptr.push_back(qo_indptr.back() + static_cast<std::int32_t>(new_ids[i].size()));
      kv_indptr.push_back(kv_indptr.back() + static_cast<std::int32_t>(length));
    }
    std::vector<std::int32_t> indices(static_cast<std::size_t>(kv_indptr.back()));
    std::iota(indices.begin(), indices.end(), 0);
    const std::vector<std::int32_t> last_page_len(batch.size(), 1);
    constexpr std::int64_t kRow = kDim * 4;
    const KvView view{k.data(), v.data(), kRow, kRow, kRow, kRow, kRow, kRow, kv_indptr.back()};
    AttentionConfig config{
        .num_q_heads = kQHeads, .num_kv_heads = 1, .head_dim = kDim, .page_size = 1, .kv_dtype = DType::f32};
    config.variant.window_left = window_of(layer);
    config.variant.sink_tokens = shape_.sink_tokens;
    std::vector<double> want(out.size());
    const Result<void> done = reference_attention(
        config,
        {.qo_indptr = qo_indptr, .kv_indptr = kv_indptr, .kv_indices = indices, .kv_last_page_len = last_page_len},
        view, q, want);
    require(done.has_value(), "oracle");
    for (std::size_t i = 0; i < out.size(); ++i) {
      require(std::abs(static_cast<double>(out[i]) - want[i]) < 1e-5, "attention");
    }
  }

  // Rows of held tokens lie in the pages of every layer; pages behind the window, and only those, are released.
  void check_rows(const Chat& chat) {
    require(chat.sequence.num_tokens() == chat.held, "length");
    for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
      const KvView view = cache_.view(layer).value();
      const std::span<const PageId> pages = chat.sequence.pages(cache_.page_table_of(layer).value());
      require(pages.size() == (chat.held + shape_.page_size - 1) / shape_.page_size, "pages");
      const std::int64_t window = window_of(layer);
      for (std::size_t t = 0; t < chat.held; ++t) {
        const PageId page = pages[t / shape_.page_size];
        const bool visible = window < 0 || t < shape_.sink_tokens ||
                             static_cast<std::int64_t>(t) >= static_cast<std::int64_t>(chat.held) - window;
        require(page != kNullPage || !visible, "visible pages are held");
        if (page == kNullPage) continue;
        std::vector<float> k, v;
        push_row(k, kK, row_of(chat, t), layer, kDim);
        push_row(v, kV, row_of(chat, t), layer, kDim);
        const std::int64_t offset =
            to_index(page) * view.k_page_stride + static_cast<std::int64_t>(t % shape_.page_size) * view.k_token_stride;
        require(std::memcmp(static_cast<const std::byte*>(view.k) + offset, k.data(), kDim * 4) == 0, "rows of K");
        require(std::memcmp(static_cast<const std::byte*>(view.v) + offset, v.data(), kDim * 4) == 0, "rows of V");
      }
    }
  }

  void pin(std::uint32_t length, std::uint32_t bits) {
    if (pins_.size() >= 2) return;
    Result<PinId> pinned = cache_.pin(prompt_of(length, bits), {.cache_salt = salt_of(bits % 2)});
    require(pinned.has_value() || pinned.error() == Errc::kNotFound, "pin");
    if (pinned) pins_.push_back(*pinned);
  }
  void unpin(std::uint32_t index) {
    if (pins_.empty()) return;
    const auto at = pins_.begin() + static_cast<std::ptrdiff_t>(index % pins_.size());
    require(cache_.unpin(*at).has_value(), "unpin");
    require(cache_.unpin(*at).error() == Errc::kNotFound, "unpin twice");
    pins_.erase(at);
  }

  void set_capacity(std::uint32_t seed) {
    const std::uint64_t wanted = 1 + seed % (shape_.capacity * 2);
    const bool fits = wanted >= cache_.stats().pool.used_pages;
    require(cache_.set_capacity(wanted).has_value() == fits, "set_capacity");
    for (const Chat& chat : chats_) check_rows(chat);
  }

  SharingCase shape_;
  KvCache cache_;
  std::vector<Chat> chats_;
  std::vector<PinId> pins_;
};

}  // namespace pagedkv::testing
