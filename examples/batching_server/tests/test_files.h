// Files that tests write: a folder that disappears with the test, and tiny checkpoints and tokenizers of every kind.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/tensor_source.h"

namespace serving::testing {

class TempFolder {
 public:
  TempFolder() {
    std::random_device random;
    path_ = std::filesystem::temp_directory_path() /
            ("pagedkv-serving-" + std::to_string(random()) + "-" + std::to_string(random()));
    std::filesystem::create_directory(path_);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] std::string file(const std::string& name) const { return (path_ / name).string(); }
  [[nodiscard]] std::string path() const { return path_.string(); }
  /// Writes a file and returns its path.
  [[nodiscard]] std::string write(const std::string& name, std::string_view bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
    return file(name);
  }

 private:
  std::filesystem::path path_;
};

inline void append_bytes(std::string& out, const void* data, std::size_t bytes) {
  out.append(static_cast<const char*>(data), bytes);
}

/// A shape of a few thousand weights, GQA included.
ModelConfig tiny_config();

/// The bytes of a llama2.c checkpoint with the weights of `source`.
std::string llama2c_bytes(TensorSource& source);
/// config.json of Hugging Face for the shape.
nlohmann::json hf_config(const ModelConfig& config);
/// The bytes of a safetensors file with the weights of `source`, as "F32" or "BF16".
std::string safetensors_bytes(TensorSource& source, const std::string& dtype);

/// A tokenizer.json as Llama 3's: byte-level, a Split expression, special tokens, a template that begins with one.
nlohmann::json byte_level_tokenizer_json();
/// A tokenizer.json as Llama 2's: a mark for spaces and byte fall-back.
nlohmann::json sentencepiece_tokenizer_json();

}  // namespace serving::testing
