// One object of each kind behind the C interface, in use, and all that can be asked of them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "pagedkv/c/pagedkv.h"

namespace pagedkv::testing {

inline constexpr std::uint32_t kDim = 8, kLayers = 2, kPageSize = 2;
inline constexpr std::array<std::int32_t, 5> kPromptTokens{1, 2, 3, 4, 5};
inline constexpr std::uint64_t kUntouched = 0xA5A5'A5A5'A5A5'A5A5;

/// Everything that can be asked, by what was asked; no handles and no addresses, so that two worlds compare equal.
using Snapshot = std::map<std::string, std::string>;

/// A cache with a sequence of five tokens, a fork of it and a step in flight; a pool and a store; a plan; the dense and
/// the interleaved cache. Whatever a test makes is closed with it.
class World {
 public:
  World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;
  ~World();
  [[nodiscard]] Snapshot snapshot();

  /// The handle in `result` is closed with the world. Returns `status`.
  pagedkv_status keep(pagedkv_status (*close)(std::uint64_t), pagedkv_status status);
  /// New sequences in place of `prompt` and `branch`, which may be in a step.
  void open_others();
  [[nodiscard]] std::size_t num_made() const { return made_.size(); }

  static pagedkv_const_tensor rows(std::size_t num_rows);      // [num_rows][kDim]
  pagedkv_tensor output(std::size_t num_rows);                 // [num_rows][kDim]
  pagedkv_attention_batch batch(const std::int32_t& seq_len);  // one sequence with one query row
  static pagedkv_cache_options cache_options();
  static pagedkv_open_options open_options();  // a salt, an extra key and a range of retention
  static pagedkv_pool_options pool_options();
  static pagedkv_dense_options dense_options();
  static pagedkv_attention_config plan_config();
  static pagedkv_kv_view view();  // of the pages of plans

  pagedkv_cache cache = 0;
  pagedkv_pool pool = 0, pool_of_cache = 0;
  pagedkv_store store = 0;
  pagedkv_sequence prompt = 0, branch = 0, in_step = 0, stored = 0;
  pagedkv_step step = 0;
  pagedkv_plan plan = 0;
  pagedkv_dense dense = 0;
  kvcache* interleaved = nullptr;
  std::array<std::int32_t, 2> pages{};  // of `pool`
  std::uint64_t pin = 0;

  // Where calls write.
  std::uint64_t result = kUntouched;
  std::int32_t number = 0;
  const char* text = nullptr;

 private:
  std::vector<std::pair<pagedkv_status (*)(std::uint64_t), std::uint64_t>> made_;
  std::vector<float> output_;
};

}  // namespace pagedkv::testing
