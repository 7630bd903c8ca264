// Eviction policies written in Python.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "pagedkv/prefix_cache.h"

namespace pagedkv::python {

/// "lru", "arc", "s3fifo", or an object with the methods of pagedkv.EvictionPolicy.
std::shared_ptr<EvictionPolicy> policy_of(nanobind::handle given);

}  // namespace pagedkv::python
