// A naive model of KvCache: sequences as vectors of rows, pages as numbers; and the rows' K, V and Q, made of a hash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "pagedkv/kv_cache.h"

namespace pagedkv::testing {

/// Element in [-1, 1) of row `row`, different for every part, layer, head and dim. Exact in f32.
inline float element(std::uint64_t part, std::uint64_t row, std::uint64_t layer, std::uint64_t index) {
  std::uint64_t x = ((row * 4 + part) * 64 + layer) * 4096 + index + 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return static_cast<float>(static_cast<std::int64_t>(x >> 40) - (1 << 23)) / static_cast<float>(1 << 23);
}

/// Appends `width` elements of one row.
inline void push_row(std::vector<float>& to, std::uint64_t part, std::uint64_t row, std::uint64_t layer,
                     std::size_t width) {
  for (std::size_t i = 0; i < width; ++i) to.push_back(element(part, row, layer, i));
}
inline constexpr std::uint64_t kK = 0, kV = 1, kQ = 2;

/// A page table of the model. Equal numbers are one shared page.
using ModelTable = std::vector<int>;

/// A sequence of the cache beside what the model knows of it.
struct ModelSequence {
  Sequence sequence;
  std::vector<std::uint64_t> rows;  ///< Held.
  ModelTable table;
  bool is_busy = false;
  bool is_dropped = false;  ///< Its Sequence is gone; it ends with its step.
};

struct ModelStepItem {
  std::shared_ptr<ModelSequence> sequence;
  std::vector<std::uint64_t> new_rows;
  ModelTable after;  ///< The table with the reserved pages.
};

/// A step in flight.
struct ModelStep {
  Step step;
  std::vector<ModelStepItem> items;
  bool is_written = false;  ///< Else its rows must not be committed: nobody knows what they hold.
};

/// Pages in use and which are shared, by counting who holds them.
class ModelPages {
 public:
  explicit ModelPages(std::uint32_t page_size) : page_size_(page_size) {}

  [[nodiscard]] static std::size_t count(const std::vector<std::shared_ptr<ModelSequence>>& sequences,
                                         const std::vector<ModelStep>& steps) {
    std::set<int> used;
    for (const auto& s : sequences) used.insert(s->table.begin(), s->table.end());
    for (const ModelStep& step : steps) {
      for (const ModelStepItem& item : step.items) {
        used.insert(item.sequence->table.begin(), item.sequence->table.end());
        used.insert(item.after.begin(), item.after.end());
      }
    }
    return used.size();
  }

  /// The table of `sequence` with room for `num_new` more rows: a shared last page that they would write is replaced.
  [[nodiscard]] ModelTable grown(const ModelSequence& sequence, std::size_t num_new,
                                 const std::vector<std::shared_ptr<ModelSequence>>& sequences,
                                 const std::vector<ModelStep>& steps) {
    ModelTable table = sequence.table;
    const bool writes_last = sequence.rows.size() % page_size_ != 0;
    if (writes_last && holders(table.back(), sequences, steps) > 1) table.back() = next_page_++;
    while (table.size() * page_size_ < sequence.rows.size() + num_new) table.push_back(next_page_++);
    return table;
  }

  void shrink(ModelTable& table, std::size_t num_rows) const { table.resize((num_rows + page_size_ - 1) / page_size_); }

 private:
  static std::size_t holders(int page, const std::vector<std::shared_ptr<ModelSequence>>& sequences,
                             const std::vector<ModelStep>& steps) {
    std::size_t count = 0;
    const auto holds = [page](const ModelTable& table) {
      for (const int p : table) {
        if (p == page) return true;
      }
      return false;
    };
    for (const auto& s : sequences) count += holds(s->table) ? 1u : 0u;
    for (const ModelStep& step : steps) {
      for (const ModelStepItem& item : step.items) {
        if (item.sequence->is_dropped && holds(item.sequence->table)) ++count;  // the others were counted above
      }
    }
    return count;
  }

  std::uint32_t page_size_;
  int next_page_ = 0;
};

}  // namespace pagedkv::testing
