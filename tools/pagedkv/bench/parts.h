// The parts of `pagedkv bench`.
#pragma once

#include "tool.h"

namespace pagedkv::tool {

Command add_bench_attention(CLI::App& bench);
Command add_bench_pool(CLI::App& bench);

}  // namespace pagedkv::tool
