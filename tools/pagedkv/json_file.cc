// Writes JSON and notices when the disk does not take it.
#include "json_file.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "pagedkv/cpu.h"
#include "pagedkv/version.h"
#include "tool.h"

namespace pagedkv::tool {

void write_text(const std::string& path, const std::string& text) {
  if (path == "-") {
    std::fwrite(text.data(), 1, text.size(), stdout);
    return;
  }
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) throw BadInput("cannot write " + path + ": " + std::strerror(errno));
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (std::fclose(file) != 0 || !written) throw BadInput("cannot write " + path + ": " + std::strerror(errno));
}

void write_json(const std::string& path, Json json) {
  json.emplace("version", version());
  json.emplace("cpu_model", cpu_info().model);
  write_text(path, to_text(json, 2) + "\n");
}

std::string to_text(const Json& json, int indent) {
  return json.dump(indent, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace pagedkv::tool
