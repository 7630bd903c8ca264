// Reads a JSON file of bounded size; every fault becomes a LoadError that names the file.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <type_traits>

#include "model/config.h"

namespace serving {

using Json = nlohmann::json;

/// Throws LoadError: missing, larger than `max_bytes`, not JSON, nested absurdly deep.
Json read_json_file(const std::string& path, std::uint64_t max_bytes);

/// Parses text as JSON without ever throwing anything but LoadError, in the name of `origin`.
Json parse_json(std::string_view text, const std::string& origin);

/// The member `key` converted to T; `fallback` if it is absent or null. Throws LoadError if it has another type, or is
/// no integer of 64 bits where T is one.
template <class T>
T member_or(const Json& object, const char* key, T fallback, const std::string& origin) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return fallback;
  // Beyond 64 bits the parser makes floating point of an integer, and converting that back is undefined.
  const bool is_whole = !std::is_integral_v<T> || std::is_same_v<T, bool> || it->is_number_integer();
  if (!is_whole) throw LoadError(origin + ": member '" + key + "' has the wrong type");
  try {
    return it->template get<T>();
  } catch (const nlohmann::json::exception&) {
    throw LoadError(origin + ": member '" + key + "' has the wrong type");
  }
}

}  // namespace serving
