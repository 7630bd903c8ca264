// The generic kernels' steps over rows that are stored as f32.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/stored_f32.cc"
#include "hwy/foreach_target.h"
#include "kernels/stored-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {
using format::HWY_NAMESPACE::CodecF32;

StoredRows find_stored_f32() noexcept { return stored_rows<CodecF32>(); }

#if HWY_TARGET == HWY_AVX3
StoredRows find_stored_f32_avx512_bf16() noexcept {
  StoredRows rows = stored_rows<CodecF32, KeyOrder::kInTurns>();
  rows.max_few_rows = kMaxScoreTile;  // above, packing pays: 1.12 times the rate at a group of 8, 1.14 at 16
  rows.work_of_one = Work::kLoads;    // 1.06 to 1.17 times the rate of groups of 1
  return rows;
}
#endif

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
