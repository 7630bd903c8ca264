// Writes .npy files and case folders like those of the ONNX data set, with expected outputs in double precision.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

namespace pagedkv::tool {

using Shape = std::vector<std::int64_t>;

inline std::int64_t product(const Shape& shape) {
  std::int64_t result = 1;
  for (const std::int64_t extent : shape) result *= extent;
  return result;
}

inline std::string npy_header(const std::string& descr, const Shape& shape, const std::string& order = "False") {
  std::string text = "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': (";
  for (const std::int64_t extent : shape) text += std::to_string(extent) + ", ";
  text += "), }";
  text.append(63 - (10 + text.size()) % 64, ' ').append(1, '\n');
  std::string header = "\x93NUMPY";
  header += {'\1', '\0', static_cast<char>(text.size() & 255), static_cast<char>(text.size() >> 8)};
  return header + text;
}

inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

template <class T>
void write_npy(const std::filesystem::path& path, const std::string& descr, const Shape& shape,
               const std::vector<T>& values) {
  std::string bytes = npy_header(descr, shape);
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  write_bytes(path, bytes);
}

/// A case in the 4-dimensional form, [batch][heads][tokens][dim], with random inputs.
struct GeneratedCase {
  std::int64_t batch = 2, q_heads = 4, kv_heads = 2, q_len = 3, past_len = 0, new_len = 5, head_dim = 8, v_dim = 6;
  bool causal = false;
  float scale = 0, soft_cap = 0;
  std::vector<float> mask = {};  ///< [q_len][past_len + new_len] to add, or empty.

  std::vector<float> q = {}, k = {}, v = {}, past_k = {}, past_v = {};

  void draw(std::uint32_t seed) {
    std::mt19937 random(seed);
    const auto values = [&random](std::int64_t count) {
      std::uniform_real_distribution<float> uniform(-1, 1);
      std::vector<float> drawn(static_cast<std::size_t>(count));
      for (float& value : drawn) value = uniform(random);
      return drawn;
    };
    q = values(batch * q_heads * q_len * head_dim);
    k = values(batch * kv_heads * new_len * head_dim);
    v = values(batch * kv_heads * new_len * v_dim);
    past_k = values(batch * kv_heads * past_len * head_dim);
    past_v = values(batch * kv_heads * past_len * v_dim);
  }

  [[nodiscard]] std::int64_t total_len() const { return past_len + new_len; }
  /// Past rows, then new ones. Shape: [batch][kv_heads][total_len][dim].
  [[nodiscard]] std::vector<float> present(bool values) const {
    const std::int64_t dim = values ? v_dim : head_dim;
    const std::vector<float>&old_rows = values ? past_v : past_k, &new_rows = values ? v : k;
    std::vector<float> rows;
    for (std::int64_t bh = 0; bh < batch * kv_heads; ++bh) {
      rows.insert(rows.end(), old_rows.begin() + bh * past_len * dim, old_rows.begin() + (bh + 1) * past_len * dim);
      rows.insert(rows.end(), new_rows.begin() + bh * new_len * dim, new_rows.begin() + (bh + 1) * new_len * dim);
    }
    return rows;
  }

  /// softmax(mask(soft_cap(scale * q k))) v by its definition. Shape: [batch][q_heads][q_len][v_dim].
  [[nodiscard]] std::vector<float> expected() const {
    const std::vector<float> keys = present(false), values = present(true);
    std::vector<float> y;
    for (std::int64_t row = 0; row < batch * q_heads * q_len; ++row) {
      const std::int64_t i = row % q_len, h = row / q_len % q_heads, b = row / q_len / q_heads;
      const std::int64_t kv = b * kv_heads + h / (q_heads / kv_heads);
      std::vector<double> sums(static_cast<std::size_t>(v_dim), 0.0);
      double total = 0;
      for (std::int64_t j = 0; j < total_len(); ++j) {
        if (causal && j > i + past_len) continue;
        double logit = 0;
        for (std::int64_t d = 0; d < head_dim; ++d) {
          logit += static_cast<double>(q[static_cast<std::size_t>(row * head_dim + d)]) *
                   static_cast<double>(keys[static_cast<std::size_t>((kv * total_len() + j) * head_dim + d)]);
        }
        logit *= scale == 0 ? 1 / std::sqrt(static_cast<double>(head_dim)) : static_cast<double>(scale);
        if (soft_cap > 0) logit = static_cast<double>(soft_cap) * std::tanh(logit / static_cast<double>(soft_cap));
        if (!mask.empty()) logit += static_cast<double>(mask[static_cast<std::size_t>(i * total_len() + j)]);
        const double weight = std::exp(logit);  // small inputs: no overflow
        total += weight;
        for (std::int64_t d = 0; d < v_dim; ++d) {
          sums[static_cast<std::size_t>(d)] +=
              weight * static_cast<double>(values[static_cast<std::size_t>((kv * total_len() + j) * v_dim + d)]);
        }
      }
      for (const double sum : sums) y.push_back(total == 0 ? 0.0F : static_cast<float>(sum / total));
    }
    return y;
  }

  /// Writes the folder of the case and returns what its case.json holds, for tests to spoil.
  [[nodiscard]] nlohmann::json write(const std::filesystem::path& folder, const std::vector<float>& y) const {
    std::filesystem::create_directories(folder);
    nlohmann::json meta = {{"case", folder.filename().string()},
                           {"op", "Attention"},
                           {"tier", "generated"},
                           {"attributes", nlohmann::json::object()},
                           {"inputs", nlohmann::json::object()},
                           {"outputs", nlohmann::json::object()}};
    const auto add = [&](const char* group, const char* name, const Shape& shape, const std::vector<float>& values) {
      const std::string file = std::string(name) + ".npy";
      write_npy(folder / file, "<f4", shape, values);
      meta[group][name] = {{"file", file}};
    };
    if (causal) meta["attributes"]["is_causal"] = 1;
    if (scale != 0) meta["attributes"]["scale"] = scale;
    if (soft_cap != 0) meta["attributes"]["softcap"] = soft_cap;
    add("inputs", "Q", {batch, q_heads, q_len, head_dim}, q);
    add("inputs", "K", {batch, kv_heads, new_len, head_dim}, k);
    add("inputs", "V", {batch, kv_heads, new_len, v_dim}, v);
    if (!mask.empty()) add("inputs", "attn_mask", {q_len, total_len()}, mask);
    if (past_len != 0) {
      add("inputs", "past_key", {batch, kv_heads, past_len, head_dim}, past_k);
      add("inputs", "past_value", {batch, kv_heads, past_len, v_dim}, past_v);
      add("outputs", "present_key", {batch, kv_heads, total_len(), head_dim}, present(false));
      add("outputs", "present_value", {batch, kv_heads, total_len(), v_dim}, present(true));
    }
    add("outputs", "Y", {batch, q_heads, q_len, v_dim}, y);
    write_bytes(folder / "case.json", meta.dump());
    return meta;
  }
};

}  // namespace pagedkv::tool
