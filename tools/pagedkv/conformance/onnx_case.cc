// From case.json and .npy files to rows, masks and positions; every shape is checked against every other.
#include "conformance/onnx_case.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "conformance/npy.h"
#include "tool.h"

namespace pagedkv::tool {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr std::int64_t kMaxExtent = 1 << 20;  ///< Of any dimension; keeps products of two far from overflow.

json read_json(const fs::path& path) {
  std::ifstream file(path);
  if (!file) throw BadInput(path.string() + ": cannot be opened");
  try {
    return json::parse(file);
  } catch (const json::exception& error) {
    throw BadInput(path.string() + ": " + error.what());
  }
}

/// A file of the case: the array, and the element type that its bits mean.
struct CaseArray {
  NpyArray npy;
  DType dtype = DType::f32;
};

class CaseFolder {
 public:
  explicit CaseFolder(fs::path folder) : folder_(std::move(folder)), meta_(read_json(folder_ / "case.json")) {
    if (!meta_.is_object()) fail("case.json is not an object");
  }

  [[noreturn]] void fail(const std::string& why) const { throw BadInput(folder_.string() + ": " + why); }
  void require(bool condition, const char* why) const {
    if (!condition) fail(why);
  }

  [[nodiscard]] const json& object(const char* key) const {
    const auto at = meta_.find(key);
    if (at == meta_.end() || !at->is_object()) fail(std::string("case.json has no object '") + key + "'");
    return *at;
  }
  [[nodiscard]] std::string text(const char* key) const {
    const auto at = meta_.find(key);
    return at != meta_.end() && at->is_string() ? at->get<std::string>() : std::string();
  }
  [[nodiscard]] double attribute(const char* key, double otherwise) const {
    const json& attributes = object("attributes");
    const auto at = attributes.find(key);
    if (at == attributes.end()) return otherwise;
    if (!at->is_number()) fail(std::string("attribute '") + key + "' is not a number");
    return at->get<double>();
  }
  [[nodiscard]] std::int64_t integer_attribute(const char* key) const {
    const double value = attribute(key, 0);
    if (!(value >= 0 && value <= static_cast<double>(kMaxExtent)) || std::floor(value) != value) {
      fail(std::string("attribute '") + key + "' is not a small whole number");
    }
    return static_cast<std::int64_t>(value);
  }

  /// The array `name` of "inputs" or "outputs", if the case has it.
  [[nodiscard]] std::optional<CaseArray> array(const char* group, const char* name) const {
    const json& arrays = object(group);
    const auto at = arrays.find(name);
    if (at == arrays.end()) return std::nullopt;
    if (!at->is_object() || !at->contains("file") || !(*at)["file"].is_string()) {
      fail(std::string("case.json names no file for ") + name);
    }
    const fs::path file = (*at)["file"].get<std::string>();
    if (file.has_parent_path()) fail(std::string("the file of ") + name + " lies outside of the case");
    CaseArray result{.npy = read_npy(folder_ / file)};
    for (const std::int64_t extent : result.npy.shape) {
      if (extent > kMaxExtent) fail(std::string(name) + " has an absurd shape");
    }
    switch (result.npy.type) {
      case NpyType::f16: result.dtype = DType::f16; break;
      case NpyType::u16: result.dtype = DType::bf16; break;  // NumPy has no bfloat16; its bits are stored
      default: result.dtype = DType::f32; break;
    }
    return result;
  }

  [[nodiscard]] const fs::path& path() const { return folder_; }

 private:
  fs::path folder_;
  json meta_;
};

bool is_float(NpyType type) { return type == NpyType::f32 || type == NpyType::f16 || type == NpyType::u16; }

/// Brings [batch][heads][tokens][dim] (4 dimensions) or [batch][tokens][heads * dim] (3) into the order of Rows.
Rows to_rows(const CaseFolder& folder, const CaseArray& array, const char* name, std::int64_t heads_of_3d) {
  const std::vector<std::int64_t>& shape = array.npy.shape;
  if (!is_float(array.npy.type)) folder.fail(std::string(name) + " does not hold floating-point numbers");
  Rows rows{.dtype = array.dtype, .data = {}};
  if (shape.size() == 3) {
    if (heads_of_3d <= 0 || shape[2] % heads_of_3d != 0) {
      folder.fail(std::string(name) + " has 3 dimensions, and its last is no multiple of the number of heads");
    }
    rows.batch = shape[0], rows.tokens = shape[1], rows.heads = heads_of_3d, rows.dim = shape[2] / heads_of_3d;
    rows.data = array.npy.bytes;
    return rows;
  }
  if (shape.size() != 4) folder.fail(std::string(name) + " has neither 3 nor 4 dimensions");
  rows.batch = shape[0], rows.heads = shape[1], rows.tokens = shape[2], rows.dim = shape[3];
  rows.data.resize(array.npy.bytes.size());
  if (rows.data.empty()) return rows;  // one extent is 0, and the others may be huge
  const std::size_t row_bytes = static_cast<std::size_t>(rows.dim) * size_of(rows.dtype);
  const std::byte* from = array.npy.bytes.data();
  for (std::int64_t b = 0; b < rows.batch; ++b) {
    for (std::int64_t h = 0; h < rows.heads; ++h) {
      for (std::int64_t t = 0; t < rows.tokens; ++t, from += row_bytes) {
        const auto row = static_cast<std::size_t>((b * rows.tokens + t) * rows.heads + h);
        if (row_bytes != 0) std::memcpy(rows.data.data() + row * row_bytes, from, row_bytes);
      }
    }
  }
  return rows;
}

Rows required_rows(const CaseFolder& folder, const char* group, const char* name, std::int64_t heads_of_3d) {
  const std::optional<CaseArray> array = folder.array(group, name);
  if (!array) folder.fail(std::string("case.json has no ") + name);
  return to_rows(folder, *array, name, heads_of_3d);
}

std::optional<Rows> optional_rows(const CaseFolder& folder, const char* group, const char* name) {
  const std::optional<CaseArray> array = folder.array(group, name);
  if (!array) return std::nullopt;
  return to_rows(folder, *array, name, 0);
}

/// Spreads a mask that broadcasts over [batch][q_heads][q_len][total_len]; missing keys at the end become invisible.
CaseMask spread_mask(const CaseFolder& folder, const CaseArray& array, const OnnxCase& c) {
  std::vector<std::int64_t> shape = array.npy.shape;
  folder.require(shape.size() >= 2 && shape.size() <= 4, "attn_mask has not 2 to 4 dimensions");
  shape.insert(shape.begin(), 4 - shape.size(), 1);
  folder.require((shape[0] == 1 || shape[0] == c.batch) && (shape[1] == 1 || shape[1] == c.q_heads) &&
                     (shape[2] == 1 || shape[2] == c.q_len) && shape[3] <= c.total_len,
                 "attn_mask does not broadcast to the scores");
  CaseMask mask{.additive = array.npy.type != NpyType::boolean, .heads = shape[1], .data = {}};
  folder.require(!mask.additive || is_float(array.npy.type), "attn_mask is neither boolean nor floating-point");
  const std::size_t entry_bytes = mask.additive ? sizeof(float) : 1;
  const std::size_t stored_bytes = size_of(array.npy.type);
  mask.data.reserve(static_cast<std::size_t>(c.batch * mask.heads * c.q_len * c.total_len) * entry_bytes);
  for (std::int64_t b = 0; b < c.batch; ++b) {
    for (std::int64_t h = 0; h < mask.heads; ++h) {
      for (std::int64_t q = 0; q < c.q_len; ++q) {
        const std::int64_t row = ((shape[0] == 1 ? 0 : b) * shape[1] + h) * shape[2] + (shape[2] == 1 ? 0 : q);
        for (std::int64_t key = 0; key < c.total_len; ++key) {
          const bool stored = key < shape[3];
          const std::byte* entry =
              array.npy.bytes.data() + (stored ? static_cast<std::size_t>(row * shape[3] + key) * stored_bytes : 0);
          if (!mask.additive) {
            mask.data.push_back(stored ? *entry : std::byte{0});
            continue;
          }
          const float value = stored ? to_float(array.dtype, entry) : -std::numeric_limits<float>::infinity();
          const auto* bytes = reinterpret_cast<const std::byte*>(&value);
          mask.data.insert(mask.data.end(), bytes, bytes + sizeof value);
        }
      }
    }
  }
  return mask;
}

/// Why the paged path cannot express the case; empty if it can.
std::string reason_unsupported(const CaseFolder& folder) {
  static const std::set<std::string_view> kAttributes = {
      "scale", "softcap", "is_causal", "q_num_heads", "kv_num_heads", "qk_matmul_output_mode", "softmax_precision"};
  static const std::set<std::string_view> kInputs = {
      "Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"};
  static const std::set<std::string_view> kOutputs = {"Y", "present_key", "present_value", "qk_matmul_output"};
  if (const std::string op = folder.text("op"); op != "Attention") return "operator '" + op + "' is not Attention";
  const std::array<std::pair<const char*, const std::set<std::string_view>*>, 3> groups = {
      {{"attributes", &kAttributes}, {"inputs", &kInputs}, {"outputs", &kOutputs}}};
  for (const auto& [group, known] : groups) {
    for (const auto& item : folder.object(group).items()) {
      if (!known->contains(item.key())) return std::string("unknown entry '") + item.key() + "' in " + group;
    }
  }
  const json& outputs = folder.object("outputs");
  if (folder.object("inputs").contains("nonpad_kv_seqlen") &&
      (outputs.contains("qk_matmul_output") || outputs.contains("present_key") || outputs.contains("present_value"))) {
    return "padding keys are not in the pages, so their scores and copies cannot be had";
  }
  if (folder.attribute("scale", 1) == 0) return "a scale of 0 stands for the default";
  return {};
}

void load_shapes_and_rows(const CaseFolder& folder, OnnxCase& c) {
  const std::int64_t q_heads_of_3d = folder.integer_attribute("q_num_heads");
  const std::int64_t kv_heads_of_3d = folder.integer_attribute("kv_num_heads");
  c.q = required_rows(folder, "inputs", "Q", q_heads_of_3d);
  c.k = required_rows(folder, "inputs", "K", kv_heads_of_3d);
  c.v = required_rows(folder, "inputs", "V", kv_heads_of_3d);
  c.y = required_rows(folder, "outputs", "Y", q_heads_of_3d);
  c.past_k = optional_rows(folder, "inputs", "past_key");
  c.past_v = optional_rows(folder, "inputs", "past_value");
  c.present_k = optional_rows(folder, "outputs", "present_key");
  c.present_v = optional_rows(folder, "outputs", "present_value");

  c.dtype = c.k.dtype;
  c.batch = c.q.batch, c.q_heads = c.q.heads, c.kv_heads = c.k.heads;
  c.head_dim = c.q.dim, c.v_head_dim = c.v.dim, c.q_len = c.q.tokens;
  folder.require(c.past_k.has_value() == c.past_v.has_value(), "one of past_key and past_value is missing");
  c.past_len = c.past_k ? c.past_k->tokens : 0;
  c.total_len = c.past_len + c.k.tokens;

  const auto matches = [&c](const Rows& rows, std::int64_t tokens, std::int64_t heads, std::int64_t dim) {
    return rows.batch == c.batch && rows.tokens == tokens && rows.heads == heads && rows.dim == dim;
  };
  folder.require(c.batch > 0 && c.q_len > 0 && c.kv_heads > 0 && c.head_dim > 0 && c.v_head_dim > 0, "empty Q, K or V");
  folder.require(matches(c.k, c.k.tokens, c.kv_heads, c.head_dim), "K does not match Q");
  folder.require(matches(c.v, c.k.tokens, c.kv_heads, c.v_head_dim) && c.v.dtype == c.dtype, "V does not match K");
  folder.require(matches(c.y, c.q_len, c.q_heads, c.v_head_dim), "Y does not match Q and V");
  folder.require(!c.past_k || (matches(*c.past_k, c.past_len, c.kv_heads, c.head_dim) && c.past_k->dtype == c.dtype),
                 "past_key does not match K");
  folder.require(!c.past_v || (matches(*c.past_v, c.past_len, c.kv_heads, c.v_head_dim) && c.past_v->dtype == c.dtype),
                 "past_value does not match V");
  folder.require(!c.present_k || matches(*c.present_k, c.total_len, c.kv_heads, c.head_dim),
                 "present_key does not match past and new keys");
  folder.require(!c.present_v || matches(*c.present_v, c.total_len, c.kv_heads, c.v_head_dim),
                 "present_value does not match past and new values");
}

/// Lengths, and where the causal diagonal lies: key j is visible to query i if j <= i + offset, with the offset the
/// past length, or (non-padded length - q_len), or 0.
void load_positions(const CaseFolder& folder, OnnxCase& c) {
  c.kv_lens.assign(static_cast<std::size_t>(c.batch), c.total_len);
  c.q_start.assign(static_cast<std::size_t>(c.batch), c.past_len);
  const std::optional<CaseArray> lens = folder.array("inputs", "nonpad_kv_seqlen");
  if (!lens) return;
  folder.require(lens->npy.type == NpyType::i64 && lens->npy.shape == std::vector<std::int64_t>{c.batch},
                 "nonpad_kv_seqlen is not one int64 a batch entry");
  folder.require(!c.past_k, "nonpad_kv_seqlen and past_key exclude each other");
  for (std::size_t b = 0; b < c.kv_lens.size(); ++b) {
    std::memcpy(&c.kv_lens[b], lens->npy.bytes.data() + b * sizeof(std::int64_t), sizeof(std::int64_t));
    folder.require(c.kv_lens[b] >= 0 && c.kv_lens[b] <= c.total_len, "nonpad_kv_seqlen exceeds the keys");
    c.q_start[b] = c.kv_lens[b] - c.q_len;
  }
}

void load_scores(const CaseFolder& folder, OnnxCase& c) {
  const std::int64_t stage = folder.integer_attribute("qk_matmul_output_mode");
  folder.require(stage <= 3, "qk_matmul_output_mode is not 0 to 3");
  c.score_stage = static_cast<ScoreStage>(stage);
  const std::optional<CaseArray> array = folder.array("outputs", "qk_matmul_output");
  if (!array) return;
  folder.require(is_float(array->npy.type) &&
                     array->npy.shape == std::vector<std::int64_t>{c.batch, c.q_heads, c.q_len, c.total_len},
                 "qk_matmul_output does not match Q and K");
  c.scores.emplace();
  for (std::size_t i = 0; i < array->npy.num_elements(); ++i) {
    c.scores->push_back(to_float(array->dtype, array->npy.bytes.data() + i * size_of(array->npy.type)));
  }
}

}  // namespace

float to_float(DType dtype, const std::byte* element) noexcept {
  if (dtype == DType::f32) {
    float value = 0;
    std::memcpy(&value, element, sizeof value);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, element, sizeof bits);
  if (dtype == DType::bf16) {
    const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
    float value = 0;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  const int exponent = (bits >> 10) & 31;
  const auto mantissa = static_cast<float>(bits & 1023);
  float magnitude = 0;
  if (exponent == 31) {
    magnitude = mantissa == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == 0) {
    magnitude = std::ldexp(mantissa, -24);
  } else {
    magnitude = std::ldexp(mantissa + 1024, exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

OnnxCase load_case(const fs::path& folder_path) {
  const CaseFolder folder(folder_path);
  OnnxCase c;
  c.name = folder.text("case").empty() ? folder_path.filename().string() : folder.text("case");
  c.tier = folder.text("tier");
  c.unsupported = reason_unsupported(folder);
  if (!c.unsupported.empty()) return c;

  c.causal = folder.integer_attribute("is_causal") != 0;
  c.scale = static_cast<float>(folder.attribute("scale", 0));
  c.soft_cap = static_cast<float>(folder.attribute("softcap", 0));
  load_shapes_and_rows(folder, c);
  load_positions(folder, c);
  if (const std::optional<CaseArray> mask = folder.array("inputs", "attn_mask")) c.mask = spread_mask(folder, *mask, c);
  load_scores(folder, c);
  return c;
}

std::vector<fs::path> find_cases(const fs::path& data_set) {
  std::error_code error;
  if (!fs::is_directory(data_set, error)) throw BadInput(data_set.string() + ": not a folder");
  const fs::path parent = fs::is_directory(data_set / "cases", error) ? data_set / "cases" : data_set;
  std::vector<fs::path> folders;
  if (fs::exists(data_set / "index.json", error)) {
    const json index = read_json(data_set / "index.json");
    if (!index.is_array()) throw BadInput((data_set / "index.json").string() + ": not a list of cases");
    for (const json& entry : index) {
      if (!entry.is_object() || !entry.contains("case") || !entry["case"].is_string()) {
        throw BadInput((data_set / "index.json").string() + ": an entry without the name of its case");
      }
      folders.push_back(parent / entry["case"].get<std::string>());
    }
  } else {
    for (const fs::directory_entry& entry : fs::directory_iterator(parent)) {
      if (fs::exists(entry.path() / "case.json", error)) folders.push_back(entry.path());
    }
  }
  if (folders.empty()) throw BadInput(data_set.string() + ": holds no cases");
  std::sort(folders.begin(), folders.end());
  return folders;
}

}  // namespace pagedkv::tool
