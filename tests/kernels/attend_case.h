// A paged sequence made by seed, one kernel task over it, and what the f64 oracle says of it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "format/convert.h"
#include "kernels/attend.h"
#include "kernels/reference.h"
#include "support/guarded_memory.h"

namespace pagedkv::testing {

using kernels::AttendKernel;
using kernels::AttendParams;
using kernels::AttendTask;

/// Everything a case can vary. Values are drawn from a normal distribution; keys that no row may read are NaN.
struct AttendShape {
  std::uint32_t group = 4, num_kv_heads = 2, head_dim = 128, v_head_dim = 128, page_size = 16;
  std::int32_t num_rows = 1;
  std::int64_t kv_len = 100;
  std::int64_t first_pos = -1;  ///< -1: the rows are the last ones of the sequence.
  DType kv_dtype = DType::bf16, q_dtype = DType::bf16, out_dtype = DType::f32;
  bool f16_as_bf16 = false;
  bool causal = true;
  std::int32_t window_left = -1;
  float soft_cap = 0, query_scale = 1;
  float third_row_scale = 1;  ///< Of each third query row, besides.
  bool alibi = false, sinks = false;
  MaskKind mask = MaskKind::kNone;
  bool mask_a_head = false;
  bool interleaved_heads = false;  ///< NHD: the heads of a token side by side.
  bool values_in_keys = false;     ///< MLA: v is the front of k.
  std::uint32_t seed = 1;
};

inline void store_element(GuardedVector<std::byte>& to, std::size_t index, DType dtype, float value) {
  format::store_element(to.data(), index, dtype, value);
}

class AttendCase {
 public:
  explicit AttendCase(const AttendShape& shape) : shape_(shape), random_(shape.seed) {
    first_pos_ = shape.first_pos >= 0 ? shape.first_pos : shape.kv_len - shape.num_rows;
    make_pages();
    const std::size_t rows = static_cast<std::size_t>(shape.num_rows + kRowsBefore);
    const std::size_t heads = num_q_heads();
    q_.resize(rows * heads * shape.head_dim * size_of(shape.q_dtype));
    for (std::size_t i = 0; i < rows * heads * shape.head_dim; ++i) {
      const bool is_third = i / (heads * shape.head_dim) % 3 == 2;
      store_element(q_, i, shape.q_dtype, normal() * shape.query_scale * (is_third ? shape.third_row_scale : 1));
    }
    for (std::size_t h = 0; h < heads; ++h) {
      slopes_.push_back(std::exp2(-8.0f * static_cast<float>(h + 1) / static_cast<float>(heads)));
      sinks_.push_back(normal());
    }
    make_mask();
    params_.num_q_heads = num_q_heads(), params_.num_kv_heads = shape.num_kv_heads, params_.group = shape.group;
    params_.head_dim = shape.head_dim, params_.v_head_dim = shape.v_head_dim, params_.page_size = shape.page_size;
    params_.kv_dtype = shape.kv_dtype, params_.q_dtype = shape.q_dtype, params_.out_dtype = shape.out_dtype;
    params_.f16_as_bf16 = shape.f16_as_bf16, params_.causal = shape.causal, params_.window_left = shape.window_left;
    params_.sm_scale = 1 / std::sqrt(static_cast<float>(shape.head_dim)), params_.logits_soft_cap = shape.soft_cap;
    params_.alibi_slopes = shape.alibi ? slopes_.data() : nullptr;
    params_.sinks = shape.sinks ? sinks_.data() : nullptr;
    params_.mask_kind = shape.mask;
    params_.q = q_.data();
  }

  struct Result {
    std::vector<float> out;                                     ///< [rows][group][v_head_dim]
    std::vector<float> lse;                                     ///< [rows][group]
    friend bool operator==(const Result& a, const Result& b) {  // bits, so that NaN and -0 count
      return a.out.size() == b.out.size() && a.lse.size() == b.lse.size() &&
             std::memcmp(a.out.data(), b.out.data(), a.out.size() * 4) == 0 &&
             std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * 4) == 0;
    }
  };

  /// One task over keys [begin, end) for rows [row, row + count). Partial states if `partial`.
  Result run(const AttendKernel& kernel, std::uint32_t kv_head, std::int64_t begin, std::int64_t end, std::int32_t row,
             std::int32_t count, bool partial = false) {
    AttendParams params = params_;
    const std::size_t v_dim = shape_.v_head_dim, group = shape_.group, rows = static_cast<std::size_t>(count);
    const std::size_t all_rows = static_cast<std::size_t>(shape_.num_rows + kRowsBefore), heads = num_q_heads();
    constexpr unsigned char kUntouched = 0x5a;
    GuardedVector<std::byte> out(all_rows * heads * v_dim * size_of(shape_.out_dtype), std::byte{kUntouched});
    GuardedVector<float> lse(all_rows * heads, 12345.f);
    params.out = out.data(), params.lse = lse.data();
    AttendTask task{};
    task.page_table = table_.data(), task.kv_begin = begin, task.kv_end = end, task.kv_head = kv_head;
    task.num_rows = count, task.first_row = kRowsBefore + row, task.first_pos = first_pos_ + row;
    task.mask = mask_.empty() ? nullptr : mask_.data();
    task.mask_row_stride = mask_row_stride_, task.mask_head_stride = mask_head_stride_;
    task.mask_offset = mask_offset(row, kv_head * shape_.group);
    task.first_part = begin == 0;
    Result result{std::vector<float>(rows * group * v_dim), std::vector<float>(rows * group)};
    if (partial) task.partial_out = result.out.data(), task.partial_lse = result.lse.data();
    // NaN in every format, and aligned, whichever end is guarded.
    const std::size_t scratch_bytes = kernel.scratch_bytes(params, count);
    GuardedVector<std::byte> scratch((scratch_bytes + 63) / 64 * 64, std::byte{0xff});
    kernel.attend(params, task, scratch.data());
    for (std::size_t i = scratch_bytes; i < scratch.size(); ++i) {
      if (scratch[i] != std::byte{0xff}) result.lse.assign(rows * group, std::numeric_limits<float>::quiet_NaN());
    }
    if (partial) return result;
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t g = 0; g < group; ++g) {
        const std::size_t from = (static_cast<std::size_t>(task.first_row) + r) * heads + kv_head * group + g;
        result.lse[r * group + g] = lse[from];
        for (std::size_t d = 0; d < v_dim; ++d) {
          result.out[(r * group + g) * v_dim + d] =
              format::load_element(out.data(), from * v_dim + d, shape_.out_dtype);
        }
      }
    }
    return result;
  }
  Result run(const AttendKernel& kernel, std::uint32_t kv_head = 1) {
    return run(kernel, kv_head, 0, shape_.kv_len, 0, shape_.num_rows);
  }

  /// What the oracle says of all rows of one kv head.
  Result expected(std::uint32_t kv_head = 1) const {
    Result result;
    std::vector<double> scores(static_cast<std::size_t>(shape_.kv_len)), out(shape_.v_head_dim);
    for (std::int32_t r = 0; r < shape_.num_rows; ++r) {
      for (std::uint32_t g = 0; g < shape_.group; ++g) {
        kernels::ReferenceRow row;
        row.row = kRowsBefore + r, row.q_head = kv_head * shape_.group + g, row.position = first_pos_ + r;
        row.page_table = table_.data(), row.kv_len = shape_.kv_len;
        row.mask = mask_.data(), row.mask_offset = mask_offset(r, row.q_head);
        double lse = 0;
        kernels::reference_row(params_, row, {}, out.data(), &lse, scores.data());
        for (const double x : out) result.out.push_back(static_cast<float>(x));
        result.lse.push_back(static_cast<float>(lse));
      }
    }
    return result;
  }

  const AttendParams& params() const { return params_; }

 private:
  static constexpr std::int32_t kRowsBefore = 2;  // rows of other sequences in q and out

  std::uint32_t num_q_heads() const { return shape_.group * shape_.num_kv_heads; }
  float normal() { return std::normal_distribution<float>()(random_); }

  void make_pages() {
    const std::size_t elem = size_of(shape_.kv_dtype), page = shape_.page_size, heads = shape_.num_kv_heads;
    const auto len = static_cast<std::size_t>(shape_.kv_len);
    const std::size_t num_pages = (len + page - 1) / page + 3;
    const std::size_t k_row = shape_.head_dim * elem, v_row = shape_.values_in_keys ? 0 : shape_.v_head_dim * elem;
    KvView& view = params_.pages;
    const std::size_t page_bytes = page * heads * (k_row + v_row) + 64;
    view.k_page_stride = view.v_page_stride = static_cast<std::int64_t>(page_bytes);
    const std::size_t head_bytes = shape_.interleaved_heads ? k_row + v_row : page * (k_row + v_row);
    view.k_head_stride = view.v_head_stride = static_cast<std::int64_t>(head_bytes);
    view.k_token_stride = static_cast<std::int64_t>(shape_.interleaved_heads ? heads * (k_row + v_row) : k_row);
    view.v_token_stride = static_cast<std::int64_t>(shape_.interleaved_heads ? heads * (k_row + v_row) : v_row);
    if (shape_.values_in_keys) view.v_token_stride = view.k_token_stride;
    view.num_pages = static_cast<std::int64_t>(num_pages);
    pages_.assign(num_pages * page_bytes, std::byte{0xff});  // NaN in f32, f16 and bf16
    view.k = pages_.data();
    view.v = pages_.data() + (shape_.values_in_keys ? 0 : shape_.interleaved_heads ? k_row : page * k_row);
    table_.resize(num_pages);
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), random_);
    for (std::size_t t = 0; t < len; ++t) {
      for (std::size_t h = 0; h < heads; ++h) {
        const std::size_t base = static_cast<std::size_t>(table_[t / page]) * page_bytes + h * head_bytes;
        const std::size_t slot = t % page * static_cast<std::size_t>(view.k_token_stride);
        const std::size_t v_slot = t % page * static_cast<std::size_t>(view.v_token_stride);
        const std::size_t v_base = base + (shape_.interleaved_heads ? k_row : page * k_row);
        for (std::size_t d = 0; d < shape_.head_dim; ++d) store_element_at(base + slot + d * elem);
        if (shape_.values_in_keys) continue;
        for (std::size_t d = 0; d < shape_.v_head_dim; ++d) store_element_at(v_base + v_slot + d * elem);
      }
    }
  }
  void store_element_at(std::size_t offset) {
    format::store_element(pages_.data() + offset, 0, shape_.kv_dtype, normal());
  }

  std::int64_t mask_offset(std::int32_t row, std::uint32_t q_head) const {
    return 5 + row * mask_row_stride_ + static_cast<std::int64_t>(q_head) * mask_head_stride_;
  }
  void make_mask() {
    if (shape_.mask == MaskKind::kNone) return;
    mask_row_stride_ = shape_.kv_len + 3;
    mask_head_stride_ = shape_.mask_a_head ? mask_row_stride_ * shape_.num_rows + 1 : 0;
    const std::int64_t of_all_heads =
        shape_.mask_a_head ? mask_head_stride_ * num_q_heads() : mask_row_stride_ * shape_.num_rows;
    const auto entries = static_cast<std::size_t>(5 + of_all_heads);
    std::bernoulli_distribution visible(0.6);
    if (shape_.mask == MaskKind::kAdditive) {
      mask_.resize(entries * 4);
      for (std::size_t i = 0; i < entries; ++i) {
        const float entry = visible(random_) ? normal() : -std::numeric_limits<float>::infinity();
        std::memcpy(mask_.data() + i * 4, &entry, 4);
      }
    } else {
      mask_.resize(shape_.mask == MaskKind::kBool ? entries : (entries + 7) / 8);
      for (std::byte& b : mask_) {
        if (shape_.mask == MaskKind::kBool) {
          b = visible(random_) ? std::byte{0x40} : std::byte{0};
        } else {
          b = static_cast<std::byte>(random_() & 0xff);
        }
      }
    }
  }

  AttendShape shape_;
  std::mt19937 random_;
  std::int64_t first_pos_;
  GuardedVector<std::byte> pages_, q_, mask_;
  GuardedVector<std::int32_t> table_;
  GuardedVector<float> slopes_, sinks_;
  std::int64_t mask_row_stride_ = 0, mask_head_stride_ = 0;
  AttendParams params_{};
};

/// Asserts that `some`, the rows from `first` on in a task of their own, are what `all` has of these rows.
inline void expect_same_rows(const AttendShape& shape, const AttendCase::Result& some, const AttendCase::Result& all,
                             std::int32_t first) {
  const std::size_t before = static_cast<std::size_t>(first) * shape.group;
  for (std::size_t i = 0; i < some.out.size(); ++i) {
    ASSERT_EQ(some.out[i], all.out[before * shape.v_head_dim + i]) << "element " << i;
  }
  for (std::size_t i = 0; i < some.lse.size(); ++i) ASSERT_EQ(some.lse[i], all.lse[before + i]) << "row " << i;
}

}  // namespace pagedkv::testing
