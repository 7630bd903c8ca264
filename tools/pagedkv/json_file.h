// Writes a JSON report where the user asked for it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace pagedkv::tool {

/// Fields keep the order in which they were added.
using Json = nlohmann::ordered_json;

/// Writes the text to the file, or to stdout if `path` is "-". Throws BadInput if that cannot be done.
void write_text(const std::string& path, const std::string& text);
/// Likewise, indented, the object `json` and what a report says little without: the version and the model of the CPU.
void write_json(const std::string& path, Json json);

/// A file name may hold bytes that are no UTF-8; they become U+FFFD. An indent of -1 keeps all in one line.
std::string to_text(const Json& json, int indent = -1);

}  // namespace pagedkv::tool
