// The generic kernels' steps over rows that are stored as f16.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/stored_f16.cc"
#include "hwy/foreach_target.h"
#include "kernels/stored-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {

StoredRows find_stored_f16() noexcept { return stored_rows<format::HWY_NAMESPACE::CodecF16>(); }

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
