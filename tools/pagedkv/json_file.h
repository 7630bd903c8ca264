// Writes a JSON report where the user asked for it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace pagedkv::tool {

/// Fields keep the order in which they were added.
using Json = nlohmann::ordered_json;

/// Writes the text, or `json`, indented, to the file, or to stdout if `path` is "-". Throws BadInput if that cannot be
/// done.
void write_text(const std::string& path, const std::string& text);
void write_json(const std::string& path, const Json& json);

}  // namespace pagedkv::tool
