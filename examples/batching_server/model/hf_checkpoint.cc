// Reads Hugging Face Llama checkpoints: config.json, and model.safetensors or the shards that its index lists.
#include <filesystem>
#include <map>

#include "model/json_file.h"
#include "model/safetensors.h"
#include "model/tensor_source.h"

namespace serving {
namespace {

constexpr std::uint64_t kMaxConfigBytes = 1 << 20;
constexpr std::uint64_t kMaxIndexBytes = 64 << 20;

RopeScaling read_rope_scaling(const Json& config, const std::string& origin) {
  RopeScaling scaling;
  const auto it = config.find("rope_scaling");
  if (it == config.end() || it->is_null()) return scaling;
  if (!it->is_object()) throw LoadError(origin + ": rope_scaling is not an object");
  const auto old_name = member_or<std::string>(*it, "type", "default", origin);
  const auto kind = member_or<std::string>(*it, "rope_type", old_name, origin);
  if (kind == "default") return scaling;
  if (kind != "linear" && kind != "llama3") throw LoadError(origin + ": unknown rope_scaling '" + kind + "'");
  scaling.kind = kind == "linear" ? RopeScaling::Kind::kLinear : RopeScaling::Kind::kLlama3;
  scaling.factor = member_or(*it, "factor", scaling.factor, origin);
  scaling.low_freq_factor = member_or(*it, "low_freq_factor", scaling.low_freq_factor, origin);
  scaling.high_freq_factor = member_or(*it, "high_freq_factor", scaling.high_freq_factor, origin);
  scaling.original_positions = member_or(*it, "original_max_position_embeddings", scaling.original_positions, origin);
  return scaling;
}

std::uint32_t read_size(const Json& config, const char* key, std::int64_t fallback, const std::string& origin) {
  const auto value = member_or<std::int64_t>(config, key, fallback, origin);
  if (value <= 0 || value > INT32_MAX) throw LoadError(origin + ": '" + key + "' is missing, zero or absurd");
  return static_cast<std::uint32_t>(value);
}

ModelConfig read_config(const std::string& path) {
  const Json json = read_json_file(path, kMaxConfigBytes);
  if (!json.is_object()) throw LoadError(path + ": not an object");
  const auto type = member_or<std::string>(json, "model_type", "llama", path);
  if (type != "llama" && type != "mistral") throw LoadError(path + ": model_type '" + type + "' is not Llama-style");
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    if (member_or(json, bias, false, path)) throw LoadError(path + ": " + bias + " is not supported");
  }
  if (const auto act = member_or<std::string>(json, "hidden_act", "silu", path); act != "silu") {
    throw LoadError(path + ": hidden_act '" + act + "' is not supported");
  }
  ModelConfig c;
  c.dim = read_size(json, "hidden_size", 0, path);
  c.hidden_dim = read_size(json, "intermediate_size", 0, path);
  c.num_layers = read_size(json, "num_hidden_layers", 0, path);
  c.num_q_heads = read_size(json, "num_attention_heads", 0, path);
  c.num_kv_heads = read_size(json, "num_key_value_heads", c.num_q_heads, path);
  c.head_dim = read_size(json, "head_dim", c.dim / c.num_q_heads, path);
  c.vocab_size = read_size(json, "vocab_size", 0, path);
  c.max_positions = read_size(json, "max_position_embeddings", 2048, path);
  c.norm_eps = static_cast<float>(member_or(json, "rms_norm_eps", 1e-6, path));
  c.rope_theta = member_or(json, "rope_theta", 10000.0, path);
  c.rope_scaling = read_rope_scaling(json, path);
  c.tied_classifier = member_or(json, "tie_word_embeddings", false, path);
  // Hugging Face counts the token itself into the window.
  if (const auto window = member_or<std::int64_t>(json, "sliding_window", 0, path); window > 0) {
    if (window > INT32_MAX) throw LoadError(path + ": the sliding window is absurd");
    c.window_left = static_cast<std::int32_t>(window - 1);
  }
  check_config(c, path);
  return c;
}

std::string name_of(TensorRole role, std::uint32_t layer) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".";
  switch (role) {
    case TensorRole::kEmbedding: return "model.embed_tokens.weight";
    case TensorRole::kAttnNorm: return prefix + "input_layernorm.weight";
    case TensorRole::kQuery: return prefix + "self_attn.q_proj.weight";
    case TensorRole::kKey: return prefix + "self_attn.k_proj.weight";
    case TensorRole::kValue: return prefix + "self_attn.v_proj.weight";
    case TensorRole::kAttnOut: return prefix + "self_attn.o_proj.weight";
    case TensorRole::kFfnNorm: return prefix + "post_attention_layernorm.weight";
    case TensorRole::kGate: return prefix + "mlp.gate_proj.weight";
    case TensorRole::kDown: return prefix + "mlp.down_proj.weight";
    case TensorRole::kUp: return prefix + "mlp.up_proj.weight";
    case TensorRole::kFinalNorm: return "model.norm.weight";
    case TensorRole::kClassifier: return "lm_head.weight";
  }
  return {};
}

class HfCheckpoint final : public TensorSource {
 public:
  explicit HfCheckpoint(const std::string& folder) : folder_(folder), config_(read_config(folder + "/config.json")) {
    const std::string single = folder + "/model.safetensors";
    const std::string index_path = single + ".index.json";
    if (!std::filesystem::exists(index_path)) {
      shards_.emplace("", SafetensorsFile(single));
      return;
    }
    const Json index = read_json_file(index_path, kMaxIndexBytes);
    const auto map = index.is_object() ? index.find("weight_map") : index.end();
    if (!index.is_object() || map == index.end() || !map->is_object()) throw LoadError(index_path + ": no weight_map");
    for (const auto& [name, file] : map->items()) {
      if (!file.is_string()) throw LoadError(index_path + ": a file name is not a string");
      const auto shard = file.get<std::string>();
      // An index may name files beside it only.
      if (shard.empty() || shard.find('/') != std::string::npos) {
        throw LoadError(index_path + ": names a file outside the checkpoint");
      }
      shard_of_.emplace(name, shard);
      if (!shards_.contains(shard))
        shards_.emplace(shard, SafetensorsFile((std::filesystem::path(folder) / shard).string()));
    }
  }

  [[nodiscard]] const ModelConfig& config() const override { return config_; }

  std::vector<float> read(TensorRole role, std::uint32_t layer) override {
    const std::string name = name_of(role, layer);
    const auto it = shard_of_.find(name);
    const std::string shard = it == shard_of_.end() ? "" : it->second;
    const auto file = shards_.find(shard);
    if (file == shards_.end()) throw LoadError(folder_ + ": no file holds tensor '" + name + "'");
    return file->second.read(name, shape_of(role, config_).num_elements());
  }

 private:
  std::string folder_;
  ModelConfig config_;
  std::map<std::string, SafetensorsFile> shards_;  // By file name; "" is the only one.
  std::map<std::string, std::string> shard_of_;    // Tensor name to file name.
};

}  // namespace

std::unique_ptr<TensorSource> open_safetensors(const std::string& folder) {
  return std::make_unique<HfCheckpoint>(folder);
}

}  // namespace serving
