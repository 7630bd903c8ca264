// One ONNX Attention case: what its folder says, in the order in which a paged cache holds tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "pagedkv/reference.h"
#include "pagedkv/types.h"

namespace pagedkv::tool {

/// Rows of tokens. Shape: [batch][tokens][heads][dim], whatever the order in the file.
struct Rows {
  DType dtype = DType::f32;
  std::int64_t batch = 0, tokens = 0, heads = 0, dim = 0;
  std::vector<std::byte> data;

  [[nodiscard]] std::int64_t num_elements() const noexcept { return batch * tokens * heads * dim; }
  /// Bytes of the rows of one batch entry.
  [[nodiscard]] std::size_t entry_bytes() const noexcept {
    return static_cast<std::size_t>(tokens * heads * dim) * size_of(dtype);
  }
};

/// An attention mask, spread over batch, heads and the keys that the file left out (which are invisible).
struct CaseMask {
  bool additive = false;        ///< f32 entries that are added; else one byte an entry, non-zero = visible.
  std::int64_t heads = 1;       ///< num_q_heads, or 1 for a mask that all heads share.
  std::vector<std::byte> data;  ///< [batch][heads][q_len][total_len].
};

struct OnnxCase {
  std::string name, tier;
  std::string unsupported;  ///< Why the case cannot be run; empty if it can. Then only name and tier are set.

  std::int64_t batch = 0, q_heads = 0, kv_heads = 0, head_dim = 0, v_head_dim = 0;
  std::int64_t q_len = 0, past_len = 0, total_len = 0;  ///< total_len: past and new tokens as stored.
  DType dtype = DType::f32;
  bool causal = false;
  float scale = 0;  ///< 0 = the default, 1 / sqrt(head_dim).
  float soft_cap = 0;
  Rows q, k, v;
  std::optional<Rows> past_k, past_v;
  std::optional<CaseMask> mask;
  std::vector<std::int64_t> kv_lens;  ///< [batch] tokens that count, of total_len.
  std::vector<std::int64_t> q_start;  ///< [batch] position of the first query; negative if it precedes all keys.
  Rows y;                             ///< Expected output.
  std::optional<Rows> present_k, present_v;
  std::optional<std::vector<float>> scores;      ///< Expected score output [batch][q_heads][q_len][total_len].
  ScoreStage score_stage = ScoreStage::kScaled;  ///< The attribute qk_matmul_output_mode has the same values.
};

/// Reads one case folder. Throws BadInput, naming the file, if anything in it is malformed or contradicts itself.
OnnxCase load_case(const std::filesystem::path& folder);

/// The case folders of a data set: those that its index.json lists, else every subfolder (of `cases`, if there is
/// one) that holds a case.json, in order of name. Throws BadInput if there are none or a listed one is missing.
std::vector<std::filesystem::path> find_cases(const std::filesystem::path& data_set);

float to_float(DType dtype, const std::byte* element) noexcept;  ///< The value of one stored element.

}  // namespace pagedkv::tool
