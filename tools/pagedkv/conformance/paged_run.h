// Runs a conformance case the way a server would: through a page pool, page tables and an attention plan.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "conformance/onnx_case.h"

namespace pagedkv::tool {

/// What came out of the pages. `unsupported` says why the library refused the case; then the rest is empty.
struct PagedOutput {
  std::string unsupported;
  std::vector<float> y;                     ///< [batch][q_len][q_heads][v_head_dim].
  std::vector<float> present_k, present_v;  ///< [batch][total_len][kv_heads][dim], read back through the page tables.
  std::vector<float> scores;                ///< [batch][q_heads][q_len][total_len], by the oracle over the same pages.
};

/// Past and new tokens are appended to one sequence a batch entry, over a pool whose pages come in random order and
/// are full of NaN beforehand. Throws BadInput if the library fails for another reason than kUnsupported.
PagedOutput run_paged(const OnnxCase& c, std::uint32_t page_size, std::string_view target, std::uint64_t seed);

}  // namespace pagedkv::tool
