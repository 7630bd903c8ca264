// A problem on every target that the machine runs and in every format, against the f64 oracle.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "kernels/problem.h"

namespace pagedkv::testing {

inline constexpr DType kFormats[] = {DType::f32, DType::f16, DType::bf16};

/// Formats of pages, and f16 that may be computed in bf16.
struct StoredFormat {
  DType dtype;
  bool f16_as_bf16 = false;

  void set(AttentionConfig& config) const { config.kv_dtype = dtype, config.variant.f16_as_bf16 = f16_as_bf16; }
};
inline constexpr StoredFormat kStoredFormats[] = {{DType::f32}, {DType::f16}, {DType::bf16}, {DType::f16, true}};

inline std::string to_string(const StoredFormat& format) {
  return to_string(format.dtype) + std::string(format.f16_as_bf16 ? "_as_bf16" : "");
}

/// The targets that compute a layer otherwise than with kStoredFormats before this one; elsewhere the option is tested
/// to change nothing.
inline std::vector<const char*> targets_of(const AttentionConfig& config) {
  std::vector<const char*> targets = runnable_targets();
  if (config.variant.f16_as_bf16) std::erase_if(targets, [](std::string_view name) { return !multiplies_bf16(name); });
  return targets;
}

/// Runs a problem on all targets and hands each result to `check(target, want, got)`, with that of the oracle.
template <class Check>
void on_every_target(const Problem& problem, const Check& check) {
  const std::vector<const char*> targets = targets_of(problem.config());
  if (targets.empty()) return;
  const auto want = problem.reference();
  ASSERT_TRUE(want.has_value()) << want.error().what;
  for (const char* target : targets) {
    SCOPED_TRACE(std::string(target) + " " + to_string(problem.config().kv_dtype) +
                 (problem.config().variant.f16_as_bf16 ? " as bf16" : ""));
    const auto got = problem.run(target);
    ASSERT_TRUE(got.has_value()) << got.error().what;
    check(target, *want, *got);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

/// Runs a problem on all targets and formats and compares each with the oracle.
inline void expect_oracle(const ProblemShape& base) {
  for (const StoredFormat& format : kStoredFormats) {
    ProblemShape shape = base;
    format.set(shape.config);
    const Problem problem(shape);
    on_every_target(problem, [&](const char* target, const Outputs& want, const Outputs& got) {
      EXPECT_EQ(problem.difference(got, want, arithmetic_of(target, problem.config())), "");
    });
  }
}

}  // namespace pagedkv::testing
