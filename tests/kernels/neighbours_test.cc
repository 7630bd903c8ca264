// Generic kernels: a query row gives the same bits whatever rows are computed beside it, in tiles and in the softmax.
#include <gtest/gtest.h>

#include "cpu/targets.h"
#include "kernels/attend_case.h"
#include "kernels/kernel_table.h"
#include "pagedkv/cpu.h"

namespace pagedkv::testing {
namespace {

// Every target, format and variant, with each run of rows {first, count}.
void expect_rows_alone_as_together(AttendShape plain,
                                   std::initializer_list<std::pair<std::int32_t, std::int32_t>> runs) {
  std::vector<AttendShape> variants(5, plain);
  variants[1].window_left = 70;
  variants[2].soft_cap = 5, variants[2].alibi = true, variants[2].sinks = true;
  variants[3].mask = MaskKind::kAdditive, variants[3].mask_a_head = true;
  variants[4].causal = false, variants[4].mask = MaskKind::kBool;
  for (const TargetInfo& target : targets()) {
    if (!target.available) continue;
    const AttendKernel* const kernel = kernels::generic_attend(cpu::target_of(target), plain.group);
    for (AttendShape shape : variants) {
      for (const DType format : {DType::f32, DType::f16, DType::bf16}) {
        shape.kv_dtype = format;
        AttendCase test_case(shape);
        const AttendCase::Result all = test_case.run(*kernel);
        for (const auto& [first, count] : runs) {
          SCOPED_TRACE(::testing::Message()
                       << target.name << ", " << to_string(format) << ", group " << shape.group << ", dims "
                       << shape.head_dim << ", window " << shape.window_left << ", cap " << shape.soft_cap << ", mask "
                       << static_cast<int>(shape.mask) << ", rows " << first << " + " << count);
          const AttendCase::Result some = test_case.run(*kernel, 1, 0, shape.kv_len, first, count);
          ASSERT_NO_FATAL_FAILURE(expect_same_rows(shape, some, all, first));
        }
      }
    }
  }
}

TEST(Neighbours, ManyRowsDoNotDependOnThem) {
  for (const std::uint32_t group : {1U, 3U, 4U}) {
    for (const std::uint32_t dim : {33U, 160U}) {
      expect_rows_alone_as_together(
          {.group = group, .head_dim = dim, .v_head_dim = dim, .num_rows = 60, .kv_len = 200, .q_dtype = DType::f32},
          {{0, 23}, {1, 22}, {17, 31}, {37, 23}});
    }
  }
}

TEST(Neighbours, FewRowsDoNotDependOnThem) {
  for (const std::uint32_t dim : {33U, 128U}) {
    expect_rows_alone_as_together(
        {.group = 1, .head_dim = dim, .v_head_dim = dim, .num_rows = 6, .kv_len = 200, .q_dtype = DType::f32},
        {{0, 1}, {1, 2}, {2, 3}, {1, 4}, {5, 1}});
    expect_rows_alone_as_together(
        {.group = 3, .head_dim = dim, .v_head_dim = dim, .num_rows = 2, .kv_len = 200, .q_dtype = DType::f32},
        {{0, 1}, {1, 1}});
  }
}

}  // namespace
}  // namespace pagedkv::testing
