// How rows are cut into tasks.
#include "attention/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

namespace pagedkv::attention {
namespace {

TEST(RowSlices, AreAsFewAsAKernelTakesAndOfNearlyEqualHeight) {
  for (const std::int32_t max_rows : {1, 8, 32, 256}) {
    const kernels::AttendKernel kernel = {.attend = nullptr, .scratch_bytes = nullptr, .max_rows = max_rows};
    for (const std::int64_t num_rows : {1, 7, 8, 9, 33, 161, 257, 65537}) {
      const RowSlices slices(num_rows, kernel);
      EXPECT_EQ(slices.count, (num_rows + max_rows - 1) / max_rows);
      std::int32_t end = 0, least = std::numeric_limits<std::int32_t>::max();
      for (std::int64_t slice = 0; slice < slices.count; ++slice) {
        EXPECT_EQ(slices.begin(slice), end);
        end += slices.height(slice);
        least = std::min(least, slices.height(slice));
        EXPECT_LE(slices.height(slice), std::min(slices.tallest(), max_rows));
      }
      EXPECT_EQ(end, num_rows);
      EXPECT_GE(least, slices.tallest() - 1) << num_rows << " rows, at most " << max_rows;
    }
  }
}

}  // namespace
}  // namespace pagedkv::attention
