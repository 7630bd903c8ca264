// The request traces that replay reads: Mooncake, Azure and agentic sessions.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "replay/session.h"

namespace pagedkv::tool {

enum class TraceFormat { kMooncake, kAzure, kAgentic };

/// "mooncake", "azure" or "agentic"; throws BadInput otherwise.
TraceFormat parse_trace_format(std::string_view name);

/// Streams a trace, plain or .xz. Sessions of the agentic trace, whose times count from their own beginnings, start
/// `session_gap_s` apart. Throws BadInput if the file cannot be opened.
///
/// Source: formats as published by kvcache-ai/Mooncake, Azure/AzurePublicDataset and callanjfox/kv-cache-tester
std::unique_ptr<SessionSource> open_trace(const std::string& path, TraceFormat format, double session_gap_s);

}  // namespace pagedkv::tool
