// Writes JSON and notices when the disk does not take it.
#include "json_file.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

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

void write_json(const std::string& path, const Json& json) { write_text(path, json.dump(2) + "\n"); }

}  // namespace pagedkv::tool
