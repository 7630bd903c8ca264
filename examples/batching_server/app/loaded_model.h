// LoadedModel: decoder and tokenizer from the paths that a user gave, or the random model without any.
#pragma once

#include <memory>
#include <string>

#include "model/decoder.h"
#include "tokenizer/tokenizer.h"

namespace serving {

struct ModelPaths {
  std::string model = {};      ///< A llama2.c checkpoint, or a folder of Hugging Face's; empty = seeded random weights.
  std::string tokenizer = {};  ///< tokenizer.bin or tokenizer.json; empty = the one in the model's folder.
  WeightType weights = WeightType::kF32;
  std::uint64_t random_seed = 1;
  DemoSize random_size = DemoSize::kSmall;
};

struct LoadedModel {
  std::string name;  ///< As clients call it.
  std::unique_ptr<Decoder> decoder;
  std::unique_ptr<Tokenizer> tokenizer;
};

/// Throws LoadError: a file is missing, corrupt or does not fit the other.
LoadedModel load_model(const ModelPaths& paths);

/// "f32", "f16" or "bf16". Throws std::invalid_argument, whose message names the choices.
pagedkv::DType parse_dtype(const std::string& name);
/// "f32" or "bf16".
WeightType parse_weight_type(const std::string& name);

}  // namespace serving
