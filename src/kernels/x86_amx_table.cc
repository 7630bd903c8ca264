// The hand-written AMX kernels, by shape.
#include "kernels/kernel_table.h"
#include "kernels/x86_amx_kernels.h"

namespace pagedkv::kernels {

#if defined(__x86_64__)
namespace {

std::size_t decode_scratch(const AttendParams& params, std::int32_t) noexcept {
  return amx::decode_scratch_bytes(params);
}
constexpr AttendKernel kDecode = {amx::attend_decode, decode_scratch, amx::kDecodeColumns};

}  // namespace

const AttendKernel* find_amx_attend(const AttendParams& params, std::int64_t q_len) noexcept {
  if (params.kv_dtype != DType::bf16) return nullptr;
  // Columns are the rows of the sequence times the heads of the group; both factors are at most 2^32.
  if (q_len <= amx::kDecodeColumns && q_len * params.group <= amx::kDecodeColumns) return &kDecode;
  return nullptr;
}
#else
const AttendKernel* find_amx_attend(const AttendParams&, std::int64_t) noexcept { return nullptr; }
#endif

}  // namespace pagedkv::kernels
