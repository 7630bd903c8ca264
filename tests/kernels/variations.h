// What a layer computes besides plain attention, for tests that go through all of it.
#pragma once

#include "kernels/problem.h"

namespace pagedkv::testing {

struct Variation {
  const char* name;
  void (*set)(ProblemShape&);
};

/// All that hide no key but by causality.
inline constexpr Variation kVariations[] = {
    {"soft_cap", [](ProblemShape& s) { s.config.variant.logits_soft_cap = 20; }},
    {"alibi", [](ProblemShape& s) { s.alibi = true; }},
    {"sinks", [](ProblemShape& s) { s.sinks = true; }},
    {"not_causal", [](ProblemShape& s) { s.config.variant.causal = false; }},
    {"other_v_dim", [](ProblemShape& s) { s.config.head_dim = 48, s.config.v_head_dim = 37; }},
    {"latent",
     [](ProblemShape& s) {
       s.config.num_q_heads = 16, s.config.num_kv_heads = 1, s.config.head_dim = 96, s.config.v_head_dim = 64;
       s.layout = PageLayout::kLatent;
     }},
    {"bf16_queries", [](ProblemShape& s) { s.q_dtype = s.out_dtype = DType::bf16; }},
    {"f16_queries", [](ProblemShape& s) { s.q_dtype = s.out_dtype = DType::f16; }},
};

}  // namespace pagedkv::testing
