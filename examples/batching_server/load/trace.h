// Traces of real request arrivals, scaled to a small model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace serving::load {

struct TraceRequest {
  double arrival = 0;  ///< Seconds from the trace's first request.
  std::uint32_t output_tokens = 1;
  std::vector<std::int32_t> prompt;  ///< Token ids; equal prefixes in the trace are equal here.
};

struct TraceScale {
  double prompt_scale = 1.0 / 64, output_scale = 1.0 / 8;
  std::uint32_t max_prompt = 384, max_output = 128;  ///< Tokens, after scaling.
  std::uint32_t first_token = 3, last_token = 258;   ///< Ids to fill prompts with.
  std::uint32_t max_requests = 1'000'000;
};

/// Reads a Mooncake trace (JSON lines: timestamp, input_length, output_length, hash_ids) or an Azure one (CSV:
/// timestamp, context tokens, generated tokens), by the file's name. Throws std::runtime_error: missing or malformed.
std::vector<TraceRequest> read_trace(const std::string& path, const TraceScale& scale);

/// Requests without a file: lengths log-normal, arrivals Poisson, the first eighth of the longest prompt the same for
/// all.
std::vector<TraceRequest> synthetic_trace(std::uint32_t count, double requests_per_second, const TraceScale& scale);

}  // namespace serving::load
