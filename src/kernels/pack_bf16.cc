// Slabs of pages that hold bf16 rows: widened, K transposed.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/pack_bf16.cc"
#include "hwy/foreach_target.h"
#include "kernels/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {
namespace {

using Codec = format::HWY_NAMESPACE::CodecBf16;

void keys(const Block& block, const Block& next, std::size_t dim_begin, std::size_t dims, float* slab) noexcept {
  pack_keys<Codec>(block, next, dim_begin, dims, slab);
}

void values(const Block& block, const Block& next, std::size_t dim_begin, std::size_t dims, float* slab) noexcept {
  pack_values<Codec>(block, next, dim_begin, dims, slab);
}

}  // namespace

Packers find_packers_bf16() noexcept { return {keys, values}; }

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
