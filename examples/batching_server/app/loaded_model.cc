// Opens what belongs together, and checks that it does.
#include "app/loaded_model.h"

#include <filesystem>
#include <stdexcept>

namespace serving {

LoadedModel load_model(const ModelPaths& paths) {
  LoadedModel loaded;
  if (paths.model.empty()) {
    loaded.name = "pagedkv-random";
    loaded.tokenizer = paths.tokenizer.empty() ? byte_tokenizer() : open_tokenizer(paths.tokenizer, 0);
    const auto source =
        random_weights(demo_config(loaded.tokenizer->vocab_size(), paths.random_size), paths.random_seed);
    loaded.decoder = std::make_unique<Decoder>(*source, paths.weights);
    return loaded;
  }
  const std::filesystem::path model = std::filesystem::path(paths.model).lexically_normal();
  loaded.name = model.has_stem() ? model.stem().string() : model.parent_path().filename().string();
  const auto source = open_checkpoint(paths.model);
  std::string tokenizer = paths.tokenizer;
  if (tokenizer.empty()) {
    tokenizer = paths.model + "/tokenizer.json";
    if (!std::filesystem::exists(tokenizer))
      throw LoadError(paths.model + ": needs a tokenizer beside it, or --tokenizer");
  }
  loaded.tokenizer = open_tokenizer(tokenizer, source->config().vocab_size);
  if (loaded.tokenizer->vocab_size() > source->config().vocab_size) {
    throw LoadError(tokenizer + ": has more tokens than the model");
  }
  loaded.decoder = std::make_unique<Decoder>(*source, paths.weights);
  return loaded;
}

pagedkv::DType parse_dtype(const std::string& name) {
  for (const auto dtype : {pagedkv::DType::f32, pagedkv::DType::f16, pagedkv::DType::bf16}) {
    if (name == pagedkv::to_string(dtype)) return dtype;
  }
  throw std::invalid_argument("'" + name + "' is not one of f32, f16, bf16");
}

WeightType parse_weight_type(const std::string& name) {
  if (name == "f32") return WeightType::kF32;
  if (name == "bf16") return WeightType::kBf16;
  throw std::invalid_argument("'" + name + "' is not one of f32, bf16");
}

}  // namespace serving
