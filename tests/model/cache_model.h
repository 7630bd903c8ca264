// The naive model of KvCache: sequences as vectors of rows, prefixes as a map from their tokens to pages.
//
// Sharing is by value: a row is a number that depends on its tenant, its token and all rows before it, and K and V of
// a row are made of that number. So whoever sees a row that is not his own sees other numbers.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "pagedkv/kv_cache.h"

namespace pagedkv::testing {

using Row = std::uint64_t;

inline std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}
inline Row first_row(std::uint32_t tenant) { return mix(tenant + 0x9e3779b97f4a7c15U); }
inline Row next_row(Row before, std::uint64_t what) { return mix(before + what * 0xd6e8feb86659fd93U + 1); }

enum class RowPart : std::uint8_t { kK, kV, kQ };

/// An element in [-2, 2) that every format holds exactly.
inline float element(Row row, RowPart part, std::uint32_t layer, std::size_t index) {
  const std::uint64_t bits = mix(row ^ (index << 40) ^ (std::uint64_t{layer} << 8) ^ static_cast<std::uint64_t>(part));
  return static_cast<float>(static_cast<std::int8_t>(bits >> 56)) / 64;
}
inline void push_row(std::vector<float>& to, Row row, RowPart part, std::uint32_t layer, std::size_t width) {
  for (std::size_t i = 0; i < width; ++i) to.push_back(element(row, part, layer, i));
}

/// Stores an element of `element` as a page does; exact for all of them.
inline void store_exact(std::byte* to, float value, DType dtype) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, 4);
  if (dtype == DType::f32) {
    std::memcpy(to, &bits, 4);
    return;
  }
  auto half = static_cast<std::uint16_t>(bits >> 16);
  if (dtype == DType::f16) {
    const std::uint32_t magnitude = bits & 0x7fffffffU;
    half = static_cast<std::uint16_t>((bits >> 16 & 0x8000U) | (magnitude == 0 ? 0 : (magnitude - (112U << 23)) >> 13));
  }
  std::memcpy(to, &half, 2);
}

using PageIds = std::vector<PageId>;

/// A sequence of the cache beside what the model knows of it.
struct ModelSequence {
  Sequence sequence;
  std::uint32_t tenant = 0;
  std::vector<Token> ids;              ///< Known to the cache, from the first; may go beyond the rows (a prompt).
  std::vector<Row> rows;               ///< Held.
  std::vector<PageIds> tables;         ///< [page tables] as they must be now, with those of a step.
  std::vector<std::uint64_t> slid_to;  ///< [page tables] window that the caller slid to, 0 = none.
  std::vector<std::size_t> visited;    ///< [page tables] entries that a window has passed.
  PageIds replaced;                    ///< [page tables] in a step: the shared page that the last one is a copy of.
  bool is_busy = false;
  bool is_dropped = false;  ///< Its handle is gone; it ends with its step.

  [[nodiscard]] Row last_row() const { return rows.empty() ? first_row(tenant) : rows.back(); }
};

struct ModelStepItem {
  std::shared_ptr<ModelSequence> sequence;
  std::vector<Row> new_rows;
  std::vector<PageIds> tables_before;
  std::vector<Token> ids_before;
};

struct ModelStep {
  Step step;
  std::vector<ModelStepItem> items;
  bool is_written = false;  ///< Else its rows must not be committed: nobody knows what they hold.
};

/// A prefix of full pages: whose it is, of which page table, and its tokens.
struct PrefixKey {
  std::uint32_t tenant = 0, table = 0;
  std::vector<Token> tokens;

  friend auto operator<=>(const PrefixKey&, const PrefixKey&) = default;
  [[nodiscard]] PrefixKey parent(std::size_t page_size) const {
    return {tenant, table, {tokens.begin(), tokens.end() - static_cast<std::ptrdiff_t>(page_size)}};
  }
};

/// Which prefixes can be found, and where.
class ModelPrefixes {
 public:
  [[nodiscard]] std::optional<PageId> find(const PrefixKey& key) const {
    const auto at = by_key_.find(key);
    return at == by_key_.end() ? std::nullopt : std::optional(at->second);
  }
  [[nodiscard]] bool has(PageId page) const { return by_page_.contains(page); }
  /// False if the page or the prefix is published already.
  bool add(PageId page, const PrefixKey& key) {
    return by_key_.emplace(key, page).second && by_page_.emplace(page, key).second;
  }
  /// False if the page was not published.
  bool remove(PageId page) {
    const auto at = by_page_.find(page);
    if (at == by_page_.end()) return false;
    by_key_.erase(at->second);
    by_page_.erase(at);
    return true;
  }
  void clear() {
    by_key_.clear();
    by_page_.clear();
  }
  [[nodiscard]] const std::map<PageId, PrefixKey>& pages() const { return by_page_; }

 private:
  std::map<PrefixKey, PageId> by_key_;
  std::map<PageId, PrefixKey> by_page_;
};

/// An event, copied out of its callback.
struct ModelEvent {
  CacheEventKind kind = CacheEventKind::kStored;
  PageId page = kNullPage;
  std::uint64_t number = 0, hash = 0, parent_hash = 0;
  std::vector<Token> tokens;
};

/// A pin, and the references that it holds.
struct ModelPin {
  PinId id{};
  PageIds pages;
};

}  // namespace pagedkv::testing
