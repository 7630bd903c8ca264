// Tiny checkpoints and tokenizers, made from scratch.
#include "tests/test_files.h"

#include <array>
#include <bit>

#include "tokenizer/byte_level.h"

namespace serving::testing {

using nlohmann::json;

ModelConfig tiny_config() {
  ModelConfig c;
  c.dim = 32;
  c.hidden_dim = 48;
  c.num_layers = 2;
  c.num_q_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 8;
  c.vocab_size = 300;
  c.max_positions = 256;
  return c;
}

std::string llama2c_bytes(TensorSource& source) {
  const ModelConfig& c = source.config();
  std::string out;
  const auto add_size = [&](std::int64_t value) {
    const auto word = static_cast<std::int32_t>(value);
    append_bytes(out, &word, sizeof word);
  };
  for (std::uint32_t value : {c.dim, c.hidden_dim, c.num_layers, c.num_q_heads, c.num_kv_heads}) add_size(value);
  add_size(c.tied_classifier ? std::int64_t{c.vocab_size} : -std::int64_t{c.vocab_size});
  add_size(c.max_positions);
  const auto add = [&](TensorRole role, std::uint32_t layers) {
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      const std::vector<float> values = source.read(role, layer);
      append_bytes(out, values.data(), values.size() * sizeof(float));
    }
  };
  using enum TensorRole;
  add(kEmbedding, 1);
  for (TensorRole role : {kAttnNorm, kQuery, kKey, kValue, kAttnOut, kFfnNorm, kGate, kDown, kUp}) {
    add(role, c.num_layers);
  }
  add(kFinalNorm, 1);
  out.append(std::size_t{c.max_positions} * c.head_dim * sizeof(float), '\0');
  if (!c.tied_classifier) add(kClassifier, 1);
  return out;
}

json hf_config(const ModelConfig& c) {
  return {{"model_type", "llama"},
          {"hidden_size", c.dim},
          {"intermediate_size", c.hidden_dim},
          {"num_hidden_layers", c.num_layers},
          {"num_attention_heads", c.num_q_heads},
          {"num_key_value_heads", c.num_kv_heads},
          {"head_dim", c.head_dim},
          {"vocab_size", c.vocab_size},
          {"max_position_embeddings", c.max_positions},
          {"rms_norm_eps", c.norm_eps},
          {"rope_theta", c.rope_theta},
          {"tie_word_embeddings", c.tied_classifier}};
}

std::string safetensors_bytes(TensorSource& source, const std::string& dtype) {
  const ModelConfig& c = source.config();
  json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  const auto add = [&](const std::string& name, TensorRole role, std::uint32_t layer) {
    const TensorShape shape = shape_of(role, c);
    const std::size_t begin = data.size();
    for (float value : source.read(role, layer)) {
      if (dtype == "F32") {
        append_bytes(data, &value, sizeof value);
      } else {  // Cut, not rounded: any bf16 will do.
        const auto half = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
        append_bytes(data, &half, sizeof half);
      }
    }
    const json sizes = shape.rows == 1 ? json::array({shape.cols}) : json::array({shape.rows, shape.cols});
    header[name] = {{"dtype", dtype}, {"shape", sizes}, {"data_offsets", json::array({begin, data.size()})}};
  };
  using enum TensorRole;
  add("model.embed_tokens.weight", kEmbedding, 0);
  for (std::uint32_t layer = 0; layer < c.num_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add(prefix + "input_layernorm.weight", kAttnNorm, layer);
    add(prefix + "self_attn.q_proj.weight", kQuery, layer);
    add(prefix + "self_attn.k_proj.weight", kKey, layer);
    add(prefix + "self_attn.v_proj.weight", kValue, layer);
    add(prefix + "self_attn.o_proj.weight", kAttnOut, layer);
    add(prefix + "post_attention_layernorm.weight", kFfnNorm, layer);
    add(prefix + "mlp.gate_proj.weight", kGate, layer);
    add(prefix + "mlp.down_proj.weight", kDown, layer);
    add(prefix + "mlp.up_proj.weight", kUp, layer);
  }
  add("model.norm.weight", kFinalNorm, 0);
  if (!c.tied_classifier) add("lm_head.weight", kClassifier, 0);
  const std::string text = header.dump();
  const std::uint64_t length = text.size();
  std::string out;
  append_bytes(out, &length, sizeof length);
  return out + text + data;
}

json byte_level_tokenizer_json() {
  json vocab = json::object();
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    vocab[to_byte_level({&c, 1})] = byte;
  }
  json merges = json::array();
  const auto merge = [&](const std::string& left, const std::string& right) {
    const std::size_t id = vocab.size();
    vocab[left + right] = id;
    merges.push_back(json::array({left, right}));
  };
  merge("h", "e");         // 256
  merge("l", "l");         // 257
  merge("he", "ll");       // 258
  merge("hell", "o");      // 259
  merge("\xC4\xA0", "w");  // 260; U+0120 is a space.
  merge("o", "r");         // 261
  const std::size_t first_special = vocab.size();
  json added = json::array();
  for (const char* name :
       {"<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}) {
    added.push_back({{"id", first_special + added.size()}, {"content", name}, {"special", true}});
  }
  const std::string words =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const json split = {{"type", "Split"}, {"pattern", {{"Regex", words}}}, {"behavior", "Isolated"}, {"invert", false}};
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const json begin = {{"SpecialToken", {{"id", "<|begin_of_text|>"}, {"type_id", 0}}}};
  const json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const json as_template = {{"type", "TemplateProcessing"}, {"single", json::array({begin, text})}};
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", json::array({split, byte_level})}}},
          {"post_processor", {{"type", "Sequence"}, {"processors", json::array({byte_level, as_template})}}},
          {"decoder", byte_level},
          {"model",
           {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}, {"byte_fallback", false}, {"ignore_merges", true}}}};
}

json sentencepiece_tokenizer_json() {
  const std::string mark = "\xE2\x96\x81";
  json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  const auto add = [&](const std::string& piece) {
    const std::size_t id = vocab.size();
    vocab[piece] = id;
  };
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::array<char, 8> name{};
    std::snprintf(name.data(), name.size(), "<0x%02X>", byte);
    add(name.data());
  }
  for (const char* letter : {"a", "b", "c", "d"}) add(letter);
  add(mark);
  json merges = json::array();
  const auto merge = [&](const std::string& left, const std::string& right) {
    add(left + right);
    merges.push_back(left + " " + right);
  };
  merge(mark, "a");
  merge("b", "c");
  merge(mark + "a", "bc");
  const json begin = {{"id", 1}, {"content", "<s>"}, {"special", true}};
  const json end = {{"id", 2}, {"content", "</s>"}, {"special", true}};
  const json prepend = {{"type", "Prepend"}, {"prepend", mark}};
  const json mark_spaces = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", mark}};
  const json unmark = {{"type", "Replace"}, {"pattern", {{"String", mark}}}, {"content", " "}};
  const json strip = {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}};
  const json fall_back = {{"type", "ByteFallback"}}, fuse = {{"type", "Fuse"}};
  const json first = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  return {{"added_tokens", json::array({begin, end})},
          {"normalizer", {{"type", "Sequence"}, {"normalizers", json::array({prepend, mark_spaces})}}},
          {"pre_tokenizer", nullptr},
          {"post_processor", {{"type", "TemplateProcessing"}, {"single", json::array({first, text})}}},
          {"decoder", {{"type", "Sequence"}, {"decoders", json::array({unmark, fall_back, fuse, strip})}}},
          {"model",
           {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}, {"byte_fallback", true}, {"unk_token", "<unk>"}}}};
}

}  // namespace serving::testing
