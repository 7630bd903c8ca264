// Bounded JSON input.
#include "model/json_file.h"

#include <filesystem>
#include <fstream>

namespace serving {
namespace {

constexpr int kMaxDepth = 64;  // A recursive parser's or destructor's stack is the limit that a hostile file aims at.

}  // namespace

Json parse_json(std::string_view text, const std::string& origin) {
  bool too_deep = false;
  const auto watch_depth = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxDepth) too_deep = true;
    return !too_deep;  // A discarded value is not kept, so that nothing deep is ever built.
  };
  try {
    Json value = Json::parse(text.begin(), text.end(), watch_depth);
    if (too_deep) throw LoadError(origin + ": JSON nested too deep");
    return value;
  } catch (const Json::exception&) {
    throw LoadError(origin + ": not valid JSON");
  }
}

Json read_json_file(const std::string& path, std::uint64_t max_bytes) {
  std::error_code error;
  const std::uint64_t bytes = std::filesystem::file_size(path, error);
  if (error) throw LoadError(path + ": cannot be opened");
  if (bytes > max_bytes) throw LoadError(path + ": larger than any file of its kind");
  std::string text(bytes, '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(text.data(), static_cast<std::streamsize>(bytes));
  if (!file) throw LoadError(path + ": cannot be read");
  return parse_json(text, path);
}

}  // namespace serving
