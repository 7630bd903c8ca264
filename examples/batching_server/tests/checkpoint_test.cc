// Checkpoints: the same weights through every file format, and files that lie.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>

#include "model/tensor_source.h"
#include "tests/test_files.h"

namespace serving {
namespace {

using testing::TempFolder;
using testing::tiny_config;

constexpr std::array kRoles = {TensorRole::kEmbedding, TensorRole::kAttnNorm, TensorRole::kQuery,    TensorRole::kKey,
                               TensorRole::kValue,     TensorRole::kAttnOut,  TensorRole::kFfnNorm,  TensorRole::kGate,
                               TensorRole::kDown,      TensorRole::kUp,       TensorRole::kFinalNorm};

void expect_same_weights(TensorSource& a, TensorSource& b) {
  for (TensorRole role : kRoles) {
    const bool per_layer = role != TensorRole::kEmbedding && role != TensorRole::kFinalNorm;
    for (std::uint32_t layer = 0; layer < (per_layer ? 2U : 1U); ++layer) {
      EXPECT_EQ(a.read(role, layer), b.read(role, layer));
    }
  }
  if (!a.config().tied_classifier) {
    EXPECT_EQ(a.read(TensorRole::kClassifier, 0), b.read(TensorRole::kClassifier, 0));
  }
}

TEST(RandomWeights, AreTheSameForTheSameSeed) {
  const auto a = random_weights(tiny_config(), 7), b = random_weights(tiny_config(), 7);
  expect_same_weights(*a, *b);
  EXPECT_NE(a->read(TensorRole::kQuery, 0), random_weights(tiny_config(), 8)->read(TensorRole::kQuery, 0));
  EXPECT_NE(a->read(TensorRole::kQuery, 0), a->read(TensorRole::kQuery, 1));
}

TEST(Llama2cCheckpoint, HoldsTheWeightsThatWereWritten) {
  for (bool tied : {true, false}) {
    const TempFolder folder;
    ModelConfig config = tiny_config();
    config.tied_classifier = tied;
    const auto source = random_weights(config, 1);
    const auto loaded = open_checkpoint(folder.write("m.bin", testing::llama2c_bytes(*source)));
    EXPECT_EQ(loaded->config().tied_classifier, tied);
    EXPECT_EQ(loaded->config().rope_pairs, RopePairs::kInterleaved);
    expect_same_weights(*source, *loaded);
  }
}

TEST(Llama2cCheckpoint, RefusesTruncationAndHostileHeaders) {
  const TempFolder folder;
  const auto source = random_weights(tiny_config(), 1);
  const std::string bytes = testing::llama2c_bytes(*source);
  for (std::size_t length : {std::size_t{0}, std::size_t{3}, std::size_t{27}, std::size_t{28}, bytes.size() - 1}) {
    EXPECT_THROW(open_checkpoint(folder.write("m.bin", bytes.substr(0, length))), LoadError) << length;
  }
  EXPECT_THROW(open_checkpoint(folder.write("m.bin", bytes + "x")), LoadError);
  for (std::size_t field = 0; field < 7; ++field) {
    for (std::int32_t value : {0, -1, INT32_MIN, INT32_MAX, 3}) {
      std::string hostile = bytes;
      std::memcpy(hostile.data() + field * 4, &value, sizeof value);
      EXPECT_THROW(open_checkpoint(folder.write("m.bin", hostile)), LoadError) << field << " " << value;
    }
  }
  EXPECT_THROW(open_checkpoint(folder.file("missing")), LoadError);
}

class HfCheckpointTest : public ::testing::Test {
 protected:
  void write(const std::string& dtype = "F32", ModelConfig config = tiny_config()) {
    source_ = random_weights(config, 2);
    put("config.json", testing::hf_config(config).dump());
    put("model.safetensors", testing::safetensors_bytes(*source_, dtype));
  }
  void put(const std::string& name, const std::string& bytes) { static_cast<void>(folder_.write(name, bytes)); }
  [[nodiscard]] std::unique_ptr<TensorSource> open() const { return open_checkpoint(folder_.path()); }

  TempFolder folder_;
  std::unique_ptr<TensorSource> source_;
};

TEST_F(HfCheckpointTest, HoldsTheWeightsThatWereWritten) {
  for (bool tied : {true, false}) {
    ModelConfig config = tiny_config();
    config.tied_classifier = tied;
    write("F32", config);
    const auto loaded = open();
    EXPECT_EQ(loaded->config().rope_pairs, RopePairs::kHalves);
    expect_same_weights(*source_, *loaded);
  }
}

TEST_F(HfCheckpointTest, RefusesTensorsThatShareBytes) {
  write();
  const std::string bytes = testing::safetensors_bytes(*source_, "F32");
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  auto header = nlohmann::json::parse(bytes.substr(sizeof length, length));
  header["model.layers.1.mlp.up_proj.weight"] = header["model.layers.0.mlp.up_proj.weight"];
  const std::string text = header.dump(), data = bytes.substr(sizeof length + length);
  length = text.size();
  put("model.safetensors", std::string(reinterpret_cast<const char*>(&length), sizeof length) + text + data);
  EXPECT_THROW(static_cast<void>(open()), LoadError);
}

TEST_F(HfCheckpointTest, ConvertsBf16) {
  write("BF16");
  const auto exact = source_->read(TensorRole::kDown, 1);
  const auto loaded = open()->read(TensorRole::kDown, 1);
  ASSERT_EQ(exact.size(), loaded.size());
  for (std::size_t i = 0; i < exact.size(); ++i) ASSERT_NEAR(loaded[i], exact[i], std::abs(exact[i]) * 0x1p-7F);
}

TEST_F(HfCheckpointTest, ReadsShardsByTheirIndex) {
  write();
  const std::string shard = "model-00001-of-00001.safetensors";
  std::filesystem::rename(folder_.file("model.safetensors"), folder_.file(shard));
  put("model.safetensors.index.json", nlohmann::json{{"weight_map", {{"model.embed_tokens.weight", shard}}}}.dump());
  const auto loaded = open();
  EXPECT_EQ(loaded->read(TensorRole::kEmbedding, 0), source_->read(TensorRole::kEmbedding, 0));
  EXPECT_THROW(loaded->read(TensorRole::kQuery, 0), LoadError);  // Not in the index.
  put("model.safetensors.index.json", R"({"weight_map":{"x":"../../etc/passwd"}})");
  EXPECT_THROW(static_cast<void>(open()), LoadError);
}

TEST_F(HfCheckpointTest, RefusesEveryLieOfAHeader) {
  write();
  const auto refuses = [&](const std::string& header, std::size_t data_bytes) {
    const std::uint64_t length = header.size();
    std::string bytes;
    testing::append_bytes(bytes, &length, sizeof length);
    put("model.safetensors", bytes + header + std::string(data_bytes, '\0'));
    EXPECT_THROW(static_cast<void>(open()), LoadError) << header;
  };
  refuses("", 0);
  refuses("{", 0);
  refuses("[1]", 0);
  refuses(R"({"a":1})", 0);
  refuses(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8);
  refuses(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,9]}})", 8);
  refuses(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8);
  refuses(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8);
  refuses(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8);
  refuses(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})", 8);
  refuses(R"({"a":{"dtype":"F32","shape":[2305843009213693954,2],"data_offsets":[0,16]}})", 16);
  put("model.safetensors", std::string(16, '\xFF'));
  EXPECT_THROW(static_cast<void>(open()), LoadError);
}

TEST_F(HfCheckpointTest, RefusesConfigurationsOutOfRange) {
  write();
  const auto refuses = [&](const char* key, const nlohmann::json& value) {
    nlohmann::json config = testing::hf_config(source_->config());
    config[key] = value;
    put("config.json", config.dump());
    EXPECT_THROW(static_cast<void>(open()), LoadError) << key << " " << value;
  };
  for (const char* key : {"hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "head_dim"}) {
    for (const nlohmann::json& value :
         {nlohmann::json(0), nlohmann::json(-1), nlohmann::json("x"), nlohmann::json(std::uint64_t{1} << 62)}) {
      refuses(key, value);
    }
  }
  refuses("num_key_value_heads", 3);
  refuses("rope_theta", -1);
  refuses("hidden_act", "gelu");
  refuses("attention_bias", true);
  refuses("model_type", "gpt2");
  refuses("rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}});
}

TEST_F(HfCheckpointTest, TensorOfAnotherSizeIsRefusedWhenRead) {
  write();
  nlohmann::json config = testing::hf_config(source_->config());
  config["intermediate_size"] = 49;
  put("config.json", config.dump());
  const auto loaded = open();
  EXPECT_THROW(loaded->read(TensorRole::kGate, 0), LoadError);
  EXPECT_NO_THROW(loaded->read(TensorRole::kQuery, 0));
}

}  // namespace
}  // namespace serving
