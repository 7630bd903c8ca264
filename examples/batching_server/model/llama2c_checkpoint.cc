// Reads llama2.c "version 0" checkpoints: seven int32, then every tensor as float32 in a fixed order.
#include <array>
#include <bit>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "model/tensor_source.h"

namespace serving {
namespace {

static_assert(std::endian::native == std::endian::little, "checkpoints are little endian and read in place");

class Llama2cCheckpoint final : public TensorSource {
 public:
  explicit Llama2cCheckpoint(std::string path) : path_(std::move(path)), file_(path_, std::ios::binary) {
    if (!file_) throw LoadError(path_ + ": cannot be opened");
    std::array<std::int32_t, 7> header{};
    file_.read(reinterpret_cast<char*>(header.data()), sizeof header);
    if (!file_) throw LoadError(path_ + ": shorter than a llama2.c header");
    for (std::size_t i = 0; i < header.size(); ++i) {
      if (i != 5 && header[i] <= 0) throw LoadError(path_ + ": a size in the header is not positive");
    }
    if (header[5] == 0 || header[5] == INT32_MIN) throw LoadError(path_ + ": the vocabulary size is zero or absurd");
    config_.dim = static_cast<std::uint32_t>(header[0]);
    config_.hidden_dim = static_cast<std::uint32_t>(header[1]);
    config_.num_layers = static_cast<std::uint32_t>(header[2]);
    config_.num_q_heads = static_cast<std::uint32_t>(header[3]);
    config_.num_kv_heads = static_cast<std::uint32_t>(header[4]);
    config_.vocab_size = static_cast<std::uint32_t>(std::abs(header[5]));
    config_.max_positions = static_cast<std::uint32_t>(header[6]);
    config_.tied_classifier = header[5] > 0;  // A negative vocabulary size announces a classifier of its own.
    config_.rope_pairs = RopePairs::kInterleaved;
    if (config_.dim % config_.num_q_heads != 0) throw LoadError(path_ + ": the heads do not divide the hidden size");
    config_.head_dim = config_.dim / config_.num_q_heads;
    check_config(config_, path_);
    lay_out();
  }

  [[nodiscard]] const ModelConfig& config() const override { return config_; }

  std::vector<float> read(TensorRole role, std::uint32_t layer) override {
    const std::uint64_t count = shape_of(role, config_).num_elements();
    const std::uint64_t offset = offsets_[static_cast<std::size_t>(role)] + layer * count * sizeof(float);
    std::vector<float> values(count);
    file_.clear();
    file_.seekg(static_cast<std::streamoff>(offset));
    file_.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(count * sizeof(float)));
    if (!file_) throw LoadError(path_ + ": ended inside a tensor");
    return values;
  }

 private:
  // Finds each role's byte offset, and that the file is exactly as long as the header says.
  void lay_out() {
    using enum TensorRole;
    std::uint64_t at = sizeof(std::int32_t) * 7;
    const auto place = [&](TensorRole role, std::uint64_t copies) {
      offsets_[static_cast<std::size_t>(role)] = at;
      at += copies * shape_of(role, config_).num_elements() * sizeof(float);
    };
    place(kEmbedding, 1);
    for (TensorRole role : {kAttnNorm, kQuery, kKey, kValue, kAttnOut, kFfnNorm, kGate, kDown, kUp}) {
      place(role, config_.num_layers);
    }
    place(kFinalNorm, 1);
    // Two RoPE tables [positions][head_dim / 2] that nobody needs any more.
    at += std::uint64_t{config_.max_positions} * config_.head_dim * sizeof(float);
    if (!config_.tied_classifier) place(kClassifier, 1);
    if (std::filesystem::file_size(path_) != at) {
      throw LoadError(path_ + ": its length is not what its header says (truncated, or not a llama2.c checkpoint)");
    }
  }

  std::string path_;
  std::ifstream file_;
  ModelConfig config_;
  std::array<std::uint64_t, 12> offsets_{};  // By role, in bytes.
};

}  // namespace

std::unique_ptr<TensorSource> open_llama2c(const std::string& path) {
  return std::make_unique<Llama2cCheckpoint>(path);
}

std::unique_ptr<TensorSource> open_checkpoint(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored) ? open_safetensors(path) : open_llama2c(path);
}

}  // namespace serving
