// One parser a format; prompts are made of ids drawn from the hash of each block, so that sharing survives scaling.
#include "load/trace.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>

namespace serving::load {
namespace {

std::uint32_t scaled(double tokens, double scale, std::uint32_t most) {
  return static_cast<std::uint32_t>(std::clamp(std::round(tokens * scale), 1.0, static_cast<double>(most)));
}

void append_ids(std::vector<std::int32_t>& prompt, std::uint64_t seed, std::uint32_t count, const TraceScale& scale) {
  std::minstd_rand random(static_cast<std::uint32_t>(seed * 2654435761U + 1));
  for (std::uint32_t i = 0; i < count; ++i) {
    prompt.push_back(
        static_cast<std::int32_t>(scale.first_token + random() % (scale.last_token - scale.first_token + 1)));
  }
}

// A prompt whose k-th block is the same wherever the trace has the same hash.
TraceRequest from_mooncake(const nlohmann::json& row, const TraceScale& scale) {
  constexpr double kBlockTokens = 512;
  TraceRequest request;
  request.arrival = row.at("timestamp").get<double>() / 1000;
  request.output_tokens = scaled(row.at("output_length").get<double>(), scale.output_scale, scale.max_output);
  const std::uint32_t length = scaled(row.at("input_length").get<double>(), scale.prompt_scale, scale.max_prompt);
  const auto block = static_cast<std::uint32_t>(std::max(1.0, std::round(kBlockTokens * scale.prompt_scale)));
  for (const auto& hash : row.at("hash_ids")) {
    const auto left = length - static_cast<std::uint32_t>(request.prompt.size());
    if (left == 0) break;
    if (!hash.is_number_integer()) throw std::runtime_error("a hash is no integer of 64 bits");
    append_ids(request.prompt, hash.get<std::uint64_t>(), std::min(block, left), scale);
  }
  if (request.prompt.empty()) append_ids(request.prompt, 0, 1, scale);
  return request;
}

// "2023-11-16 18:15:46.6805900,374,44"
TraceRequest from_azure(const std::string& line, std::size_t number, const TraceScale& scale) {
  int hour = 0, minute = 0;
  double second = 0, context = 0, generated = 0;
  // sscanf reads "nan" and "inf" too, and hours that no day has.
  constexpr double kMaxTokens = 1e9;
  const auto within = [](double value, double most) { return value >= 0 && value <= most; };
  if (std::sscanf(line.c_str(), "%*d-%*d-%*d %d:%d:%lf,%lf,%lf", &hour, &minute, &second, &context, &generated) != 5 ||
      !within(hour, 23) || !within(minute, 59) || !within(second, 61) || !within(context, kMaxTokens) ||
      !within(generated, kMaxTokens)) {
    throw std::runtime_error("line " + std::to_string(number) + " is not timestamp,context,generated");
  }
  TraceRequest request;
  request.arrival = hour * 3600 + minute * 60 + second;
  request.output_tokens = scaled(generated, scale.output_scale, scale.max_output);
  append_ids(request.prompt, number, scaled(context, scale.prompt_scale, scale.max_prompt), scale);
  return request;
}

}  // namespace

std::vector<TraceRequest> read_trace(const std::string& path, const TraceScale& scale) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  std::vector<TraceRequest> requests;
  std::string line;
  const bool is_csv = path.ends_with(".csv");
  try {
    for (std::size_t number = 1; requests.size() < scale.max_requests && std::getline(file, line); ++number) {
      if (line.empty() || line == "\r" || (is_csv && number == 1)) continue;
      requests.push_back(is_csv ? from_azure(line, number, scale) : from_mooncake(nlohmann::json::parse(line), scale));
    }
  } catch (const std::exception& error) {
    throw std::runtime_error(path + ": " + error.what());
  }
  if (requests.empty()) throw std::runtime_error(path + ": holds no request");
  std::ranges::stable_sort(requests, {}, &TraceRequest::arrival);
  const double start = requests.front().arrival;
  for (TraceRequest& request : requests) request.arrival -= start;
  return requests;
}

std::vector<TraceRequest> synthetic_trace(std::uint32_t count, double requests_per_second, const TraceScale& scale) {
  std::mt19937 random(1);
  std::lognormal_distribution<double> prompt_length(std::log(scale.max_prompt / 4.0), 0.7);
  std::lognormal_distribution<double> output_length(std::log(scale.max_output / 4.0), 0.7);
  std::exponential_distribution<double> gap(requests_per_second);
  std::vector<TraceRequest> requests;
  double now = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    TraceRequest request;
    request.arrival = now;
    now += gap(random);
    request.output_tokens = scaled(output_length(random), 1, scale.max_output);
    append_ids(request.prompt, 12345, scale.max_prompt / 8, scale);  // What everyone's prompt begins with.
    append_ids(request.prompt, i + 1, scaled(prompt_length(random), 1, scale.max_prompt - scale.max_prompt / 8), scale);
    requests.push_back(std::move(request));
  }
  return requests;
}

}  // namespace serving::load
