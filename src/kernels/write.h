// Rows of new tokens on their way into pages: converted to the pages' format, past the caches where that pays.
//
// Layer: kernels.
#pragma once

#include <cstddef>

#include "cpu/targets.h"
#include "pagedkv/types.h"

namespace pagedkv::kernels {

/// Writes `count` elements of one row. With `stream`, stores bypass the caches where alignment allows it; the caller
/// must then call `fence` before another thread reads the row.
using WriteRowFn = void (*)(void* to, DType to_dtype, const void* from, DType from_dtype, std::size_t count,
                            bool stream) noexcept;

/// The row writer of a target; never null.
WriteRowFn find_write_row(cpu::Target target) noexcept;

/// Makes streamed stores visible before whatever this thread does next.
void fence() noexcept;

}  // namespace pagedkv::kernels
