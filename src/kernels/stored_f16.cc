// The generic kernels' steps over rows that are stored as f16.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/stored_f16.cc"
#include "hwy/foreach_target.h"
#include "kernels/pairs-inl.h"
#include "kernels/stored-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {
using format::HWY_NAMESPACE::CodecF16;

StoredRows find_stored_f16() noexcept { return stored_rows<CodecF16>(); }

#if HWY_TARGET == HWY_AVX3
StoredRows find_stored_f16_avx512_bf16(DType q_dtype, bool f16_as_bf16) noexcept {
  StoredRows rows = stored_rows<CodecF16, KeyOrder::kInTurns>();
  if (f16_as_bf16) rows.many = many_rows_in_pairs<CodecF16>(q_dtype);
  return rows;
}
#endif

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
