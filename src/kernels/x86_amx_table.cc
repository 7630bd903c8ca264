// The hand-written AMX kernels, by shape.
#include "kernels/kernel_table.h"

namespace pagedkv::kernels {

const AttendKernel* find_amx_attend(const AttendParams&, std::int64_t) noexcept { return nullptr; }

}  // namespace pagedkv::kernels
