// Generates sessions with the lengths, turns and shared prefixes of the workload that was asked for.
#include "replay/workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>

#include "tool.h"

namespace pagedkv::tool {
namespace {

constexpr std::uint32_t kBlockTokens = 16;

/// Lengths spread log-normally around a median; `spread` is the standard deviation of the logarithm.
struct Lengths {
  double median = 1;
  double spread = 0;
  std::uint32_t min = 1, max = 1;
};

/// What a kind of workload looks like.
struct Shape {
  std::uint32_t num_system_prompts;  ///< A session opens with one of them.
  std::uint32_t system_tokens;       ///< A multiple of kBlockTokens.
  double mean_turns;                 ///< Turns of a session, geometric.
  std::uint32_t max_turns;
  Lengths first_input, input, output;  ///< Tokens that a turn adds.
  double mean_gap_s;                   ///< Between the starts of sessions; 0 = all at once.
  double mean_think_s;                 ///< Between the turns of a session.
};

constexpr Shape kChat = {4, 256, 3.0, 12, {60, 1.0, 4, 2048}, {60, 1.0, 4, 2048}, {160, 0.8, 8, 1024}, 0.25, 8.0};
constexpr Shape kAgent = {2, 2048, 10.0, 40, {900, 0.7, 64, 8192}, {250, 1.2, 8, 8192}, {120, 0.8, 8, 1024}, 1.0, 4.0};
constexpr Shape kBatch = {1, 64, 1.0, 1, {320, 0.8, 16, 4096}, {1, 0, 1, 1}, {256, 0.7, 16, 1024}, 0, 0};

const Shape& shape_of(Workload workload) {
  switch (workload) {
    case Workload::kChat: return kChat;
    case Workload::kAgent: return kAgent;
    case Workload::kBatch: return kBatch;
  }
  throw BadInput("unknown workload");
}

class GeneratedSource final : public SessionSource {
 public:
  GeneratedSource(const Shape& shape, std::uint64_t seed) : shape_(shape), random_(seed) {}

  bool next(Session& session) override {
    session.start_s = start_s_;
    session.block_tokens = kBlockTokens;
    session.turns.clear();
    const std::uint64_t system_prompt = random_() % shape_.num_system_prompts;
    std::uint32_t own_tokens = 0;  // what the conversation holds behind the system prompt
    double offset_s = 0;
    std::uint32_t num_turns = 1;
    while (num_turns < shape_.max_turns && uniform() > 1 / shape_.mean_turns) ++num_turns;
    for (std::uint32_t i = 0; i < num_turns; ++i) {
      own_tokens += length(i == 0 ? shape_.first_input : shape_.input);
      Turn turn;
      turn.offset_s = offset_s;
      turn.prompt_tokens = shape_.system_tokens + own_tokens;
      turn.output_tokens = length(shape_.output);
      own_tokens += turn.output_tokens;
      turn.blocks = {
          {system_prompt << 32, shape_.system_tokens / kBlockTokens},
          {(num_sessions_ + shape_.num_system_prompts) << 32, (own_tokens + kBlockTokens - 1) / kBlockTokens}};
      turn.known_tokens = shape_.system_tokens + own_tokens;
      session.turns.push_back(std::move(turn));
      offset_s += exponential(shape_.mean_think_s);
    }
    start_s_ += exponential(shape_.mean_gap_s);
    ++num_sessions_;
    return true;
  }

 private:
  /// The standard's distributions may differ between libraries; these may not. In (0, 1).
  double uniform() { return (static_cast<double>(random_() >> 11) + 0.5) * 0x1p-53; }
  double exponential(double mean) { return -mean * std::log(uniform()); }

  std::uint32_t length(const Lengths& lengths) {
    const double normal = std::sqrt(-2 * std::log(uniform())) * std::cos(2 * std::numbers::pi * uniform());
    const double drawn = std::round(lengths.median * std::exp(lengths.spread * normal));
    return static_cast<std::uint32_t>(
        std::clamp(drawn, static_cast<double>(lengths.min), static_cast<double>(lengths.max)));
  }

  const Shape& shape_;
  std::mt19937_64 random_;
  std::uint64_t num_sessions_ = 0;
  double start_s_ = 0;
};

}  // namespace

Workload parse_workload(std::string_view name) {
  if (name == "chat") return Workload::kChat;
  if (name == "agent") return Workload::kAgent;
  if (name == "batch") return Workload::kBatch;
  throw BadInput(fmt::format("unknown workload {}: chat, agent or batch", name));
}

std::unique_ptr<SessionSource> generate_workload(Workload workload, std::uint64_t seed) {
  return std::make_unique<GeneratedSource>(shape_of(workload), seed);
}

}  // namespace pagedkv::tool
