// In which order this CPU wants lines of random pages to be asked for.
//
// Layer: cpu.
#pragma once

#include <cstdint>

namespace pagedkv::cpu {

/// Four lines of each of several OS pages in turn, or two lines at a time of one page after the other, evenly.
enum class PrefetchOrder : std::uint8_t { kPagesInTurn, kPageAfterPage };

/// What reads fastest here, as measured (docs/KERNELS.md): page after page on AMD's Zen 5, which drops prefetches that
/// come faster than its line buffers take them; pages in turn on Xeons and Zen 3, and where nothing was measured. A
/// hint for speed, which changes no result. Threads: any.
[[nodiscard]] PrefetchOrder prefetch_order() noexcept;

}  // namespace pagedkv::cpu
