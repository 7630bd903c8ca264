// All subcommands of `pagedkv`, in the order in which --help lists them. Each is defined in the file of its name.
#pragma once

#include "tool.h"

namespace pagedkv::tool {}  // namespace pagedkv::tool
