// Built-in workloads, for when there is no trace at hand: chat, agent and batch, from a seed.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "replay/session.h"

namespace pagedkv::tool {

enum class Workload { kChat, kAgent, kBatch };

/// "chat", "agent" or "batch"; throws BadInput otherwise.
Workload parse_workload(std::string_view name);

/// An endless stream of sessions, the same for the same seed on every machine. See docs/REPLAY.md for the shapes.
std::unique_ptr<SessionSource> generate_workload(Workload workload, std::uint64_t seed);

}  // namespace pagedkv::tool
