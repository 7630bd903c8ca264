// The page that shows the pool live, and the JSON that it draws.
#pragma once

#include <pagedkv/kv_cache.h>

#include <string>

#include "engine/engine.h"

namespace serving {

/// The page: HTML, style and script in one, without anything from elsewhere.
const char* pool_page_html();

/// Every page's state, who holds which, and the counters. Pages are given as runs to stay small.
std::string pool_json(const PoolSnapshot& snapshot, pagedkv::KvCache& cache);

}  // namespace serving
