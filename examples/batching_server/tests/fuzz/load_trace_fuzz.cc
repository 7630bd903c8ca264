// Fuzzes the traces that the load generator replays: requests or a std::runtime_error.
#include <cmath>
#include <stdexcept>

#include "fuzz/fuzz_input.h"
#include "load/trace.h"

using namespace serving;

// The first byte says CSV or JSON lines, all others are the file.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const pagedkv::fuzz::ScratchFolder folder;
  pagedkv::fuzz::Input input(data, size);
  const char* const name = input.below(2) == 1 ? "trace.csv" : "trace.jsonl";
  const load::TraceScale scale;
  try {
    for (const load::TraceRequest& request : load::read_trace(folder.write(name, input.rest()), scale)) {
      pagedkv::fuzz::check(std::isfinite(request.arrival), "a request arrives some time");
      pagedkv::fuzz::check(!request.prompt.empty() && request.prompt.size() <= scale.max_prompt,
                           "a prompt has 1 to max_prompt tokens");
      pagedkv::fuzz::check(request.output_tokens >= 1 && request.output_tokens <= scale.max_output,
                           "a request has 1 to max_output tokens to generate");
    }
  } catch (const std::runtime_error&) {
    // refused, as it may be
  }
  return 0;
}
