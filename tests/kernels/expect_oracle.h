// A problem on every target that the machine runs and in every format, against the f64 oracle.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "kernels/problem.h"

namespace pagedkv::testing {

inline constexpr DType kFormats[] = {DType::f32, DType::f16, DType::bf16};

/// Runs a problem on all targets and hands each result to `check(target, want, got)`, with that of the oracle.
template <class Check>
void on_every_target(const Problem& problem, const Check& check) {
  const auto want = problem.reference();
  ASSERT_TRUE(want.has_value()) << want.error().what;
  for (const char* target : runnable_targets()) {
    SCOPED_TRACE(std::string(target) + " " + to_string(problem.config().kv_dtype));
    const auto got = problem.run(target);
    ASSERT_TRUE(got.has_value()) << got.error().what;
    check(target, *want, *got);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

/// Runs a problem on all targets and formats and compares each with the oracle.
inline void expect_oracle(const ProblemShape& base) {
  for (const DType format : kFormats) {
    ProblemShape shape = base;
    shape.config.kv_dtype = format;
    const Problem problem(shape);
    on_every_target(problem, [&](const char* target, const Outputs& want, const Outputs& got) {
      EXPECT_EQ(problem.difference(got, want, arithmetic_of(target, format)), "");
    });
  }
}

}  // namespace pagedkv::testing
