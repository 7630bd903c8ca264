// All subcommands of `pagedkv`, in the order in which --help lists them. Each is defined in the file of its name.
#pragma once

#include "tool.h"

namespace pagedkv::tool {

/// Adds the parser of its subcommand to `root`; what it returns runs it.
Command add_replay(CLI::App& root);
Command add_conformance(CLI::App& root);
Command add_bench(CLI::App& root);
Command add_info(CLI::App& root);

}  // namespace pagedkv::tool
