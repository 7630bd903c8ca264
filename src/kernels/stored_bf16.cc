// The generic kernels' steps over rows that are stored as bf16.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/stored_bf16.cc"
#include "hwy/foreach_target.h"
#include "kernels/stored-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {

StoredRows find_stored_bf16() noexcept { return stored_rows<format::HWY_NAMESPACE::CodecBf16>(); }

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
