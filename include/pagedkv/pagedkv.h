// Everything at once, for tutorials. The library's own code includes what it uses.
#pragma once

#include "pagedkv/attention.h"          // IWYU pragma: export
#include "pagedkv/cpu.h"                // IWYU pragma: export
#include "pagedkv/dense_cache.h"        // IWYU pragma: export
#include "pagedkv/interleaved_cache.h"  // IWYU pragma: export
#include "pagedkv/kv_cache.h"           // IWYU pragma: export
#include "pagedkv/page_pool.h"          // IWYU pragma: export
#include "pagedkv/prefix_cache.h"       // IWYU pragma: export
#include "pagedkv/reference.h"          // IWYU pragma: export
#include "pagedkv/result.h"             // IWYU pragma: export
#include "pagedkv/sequence.h"           // IWYU pragma: export
#include "pagedkv/types.h"              // IWYU pragma: export
#include "pagedkv/version.h"            // IWYU pragma: export
