// Real rows of Q, K and V for the tokens of a replay, and what attention over them yields.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "pagedkv/types.h"
#include "replay/kv_memory.h"
#include "replay/request_tokens.h"

namespace pagedkv::tool {

/// One model's attention.
struct AttentionShape {
  std::uint32_t layers = 4, q_heads = 16, kv_heads = 4, head_dim = 64;
  DType dtype = DType::bf16;

  /// Bytes of K and V of one token in all layers.
  [[nodiscard]] std::uint64_t bytes_per_token() const {
    return std::uint64_t{layers} * kv_heads * head_dim * 2 * size_of(dtype);
  }
};

/// The new tokens of one sequence in a step.
struct NewTokens {
  SequenceKey key = 0;
  std::uint64_t begin = 0;  ///< Position of the first.
  std::uint32_t count = 0;
};

/// Makes the rows of a step. A row depends on its token and layer alone, so it comes out the same under every policy
/// and after every preemption, and so must the outputs.
class AttentionLoad {
 public:
  AttentionLoad(const AttentionShape& shape, std::uint32_t max_seqs);

  void open(SequenceKey key, const Demand& demand);

  /// Begins a step with these new tokens; q(), k(), v() and out() then hold as many rows.
  void begin_step(std::span<const NewTokens> parts);
  /// Fills q(), k() and v() for a layer.
  void fill(std::uint32_t layer);
  [[nodiscard]] ConstTensor q() const;
  [[nodiscard]] ConstTensor k() const;
  [[nodiscard]] ConstTensor v() const;
  [[nodiscard]] Tensor out();
  /// Takes note of the outputs of a layer and of the time that attention took.
  void took(std::uint32_t layer, std::span<const NewTokens> parts, std::chrono::nanoseconds time, MemoryTotals& totals);

 private:
  AttentionShape shape_;
  std::size_t q_row_, kv_row_;         ///< Elements.
  std::vector<std::uint16_t> bank16_;  ///< Random elements from which rows are cut; one of the two is in use.
  std::vector<float> bank32_;
  struct Owner {
    RequestTokens tokens;
    std::uint64_t number = 0;
    std::uint64_t total_tokens = 0;
  };
  std::vector<Owner> owners_;  ///< By key.
  std::vector<Token> tokens_;  ///< [rows] of the step.
  std::vector<std::byte> q_, k_, v_;
  std::vector<float> out_;  ///< [rows][q_heads][head_dim]
};

}  // namespace pagedkv::tool
