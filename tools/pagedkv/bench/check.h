// Compares what a benchmark computes with the oracle, before anything is timed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bench/workload.h"
#include "pagedkv/attention.h"

namespace pagedkv::tool {

struct CheckedError {
  /// The larger of: root mean square of (out - oracle) over that of the oracle; and of |lse - oracle| / (1 + |oracle|).
  double relative = 0;
  double allowed = 0;    ///< By the roughest format involved: its rounding, with room for that of probabilities.
  std::size_t rows = 0;  ///< Query rows that were checked, with all their heads.
};

/// Compares out and lse, as a run over copy 0 has left them, with the f64 oracle: the first and the last query row and
/// others drawn at random, as many as a second or so allows.
CheckedError check_against_oracle(const AttentionConfig& config, Workload& workload, std::uint64_t seed);

}  // namespace pagedkv::tool
