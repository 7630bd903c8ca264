// Tests of write_kv: rows land in their slots, converted, and nowhere else.
#include <gtest/gtest.h>
#include <tbb/parallel_for.h>
#include <tbb/task_group.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "format/convert.h"
#include "pagedkv/attention.h"
#include "pagedkv/cpu.h"

namespace pagedkv {
namespace {

// Pages [page][head][K, V][token][dim] between guard bytes that nobody may touch.
struct Pages {
  AttentionConfig config;
  std::int64_t num_pages;
  std::size_t v_dim;
  std::vector<std::byte> bytes;
  static constexpr std::size_t kGuard = 64;

  Pages(const AttentionConfig& layer, std::int64_t count)
      : config(layer), num_pages(count), v_dim(layer.v_head_dim != 0 ? layer.v_head_dim : layer.head_dim) {
    bytes.assign(static_cast<std::size_t>(num_pages) * page_bytes() + 2 * kGuard, std::byte{0xEE});
  }
  [[nodiscard]] std::size_t element() const { return size_of(config.kv_dtype); }
  [[nodiscard]] std::size_t head_bytes() const { return config.page_size * (config.head_dim + v_dim) * element(); }
  [[nodiscard]] std::size_t page_bytes() const { return config.num_kv_heads * head_bytes(); }

  KvWriteView view() {
    KvWriteView view;
    view.k = bytes.data() + kGuard;
    view.v = bytes.data() + kGuard + config.page_size * config.head_dim * element();
    view.k_page_stride = view.v_page_stride = static_cast<std::int64_t>(page_bytes());
    view.k_head_stride = view.v_head_stride = static_cast<std::int64_t>(head_bytes());
    view.k_token_stride = static_cast<std::int64_t>(config.head_dim * element());
    view.v_token_stride = static_cast<std::int64_t>(v_dim * element());
    view.num_pages = num_pages;
    return view;
  }
};

// Writes rows, and does the same element by element into a second set of pages; both must be equal, guards included.
void expect_written(AttentionConfig config, DType source, const std::vector<std::int64_t>& slots,
                    std::int64_t num_pages) {
  Pages got(config, num_pages), want(config, num_pages);
  const std::size_t rows = slots.size() * config.num_kv_heads;
  std::vector<std::byte> k(rows * config.head_dim * size_of(source)), v(rows * want.v_dim * size_of(source));
  for (std::size_t i = 0; i < rows * config.head_dim; ++i) {
    format::store_element(k.data(), i, source, static_cast<float>(i % 2039) * 0.37F - 300);
  }
  for (std::size_t i = 0; i < rows * want.v_dim; ++i) {
    format::store_element(v.data(), i, source, static_cast<float>(i % 1999) * 0.53F - 500);
  }
  const auto done = write_kv(config, got.view(), slots, {k.data(), rows * config.head_dim, source},
                             {v.data(), rows * want.v_dim, source});
  ASSERT_TRUE(done.has_value()) << done.error().what;
  const KvWriteView view = want.view();
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i] < 0) continue;
    const std::int64_t page = slots[i] / config.page_size, slot = slots[i] % config.page_size;
    for (std::uint32_t h = 0; h < config.num_kv_heads; ++h) {
      const std::size_t row = i * config.num_kv_heads + h;
      auto* const k_to = static_cast<std::byte*>(view.k) + page * view.k_page_stride + h * view.k_head_stride +
                         slot * view.k_token_stride;
      auto* const v_to = static_cast<std::byte*>(view.v) + page * view.v_page_stride + h * view.v_head_stride +
                         slot * view.v_token_stride;
      for (std::size_t d = 0; d < config.head_dim; ++d) {
        format::store_element(k_to, d, config.kv_dtype,
                              format::load_element(k.data(), row * config.head_dim + d, source));
      }
      for (std::size_t d = 0; d < want.v_dim; ++d) {
        format::store_element(v_to, d, config.kv_dtype, format::load_element(v.data(), row * want.v_dim + d, source));
      }
    }
  }
  EXPECT_TRUE(got.bytes == want.bytes);
}

constexpr DType kFormats[] = {DType::f32, DType::f16, DType::bf16};

TEST(WriteKv, PutsRowsInTheirSlotsAndNowhereElse) {
  for (const TargetInfo& target : targets()) {
    if (!target.available) continue;
    for (const DType pages : kFormats) {
      for (const DType source : kFormats) {
        SCOPED_TRACE(std::string(target.name) + to_string(pages) + to_string(source));
        AttentionConfig config = {
            .num_q_heads = 3, .num_kv_heads = 3, .head_dim = 33, .v_head_dim = 55, .page_size = 5, .kv_dtype = pages};
        config.target = target.name;
        expect_written(config, source, {7, 0, -1, 14, 3, -5}, 3);
      }
    }
  }
}

TEST(WriteKv, TakesPagesOfOneTokenAndBatchesThatWriteNothing) {
  AttentionConfig config = {.num_q_heads = 2, .num_kv_heads = 2, .head_dim = 8, .page_size = 1};
  expect_written(config, DType::f32, {2, 0, 4}, 5);
  expect_written(config, DType::bf16, {-1, -7, -1}, 5);
  expect_written(config, DType::bf16, {}, 5);
}

TEST(WriteKv, StreamsLargeBatchesOfAnyAlignment) {
  std::vector<std::int64_t> slots(4000);
  std::iota(slots.rbegin(), slots.rend(), std::int64_t{3});
  for (const std::uint32_t dim : {64U, 128U, 33U}) {
    for (const DType pages : kFormats) {
      expect_written({.num_q_heads = 2, .num_kv_heads = 2, .head_dim = dim, .page_size = 16, .kv_dtype = pages},
                     DType::bf16, slots, 251);
    }
  }
}

TEST(WriteKv, InACancelledGroupSaysSo) {
  const AttentionConfig config = {
      .num_q_heads = 2, .num_kv_heads = 2, .head_dim = 64, .page_size = 16, .kv_dtype = DType::f32};
  std::vector<std::int64_t> slots(4000);
  std::iota(slots.begin(), slots.end(), std::int64_t{0});
  const std::vector<float> rows(slots.size() * 2 * 64, 1.0F);
  Pages pages(config, 250);
  tbb::task_group_context context;
  Result<void> result;
  tbb::parallel_for(
      0, 1,
      [&](int) {
        context.cancel_group_execution();
        result = write_kv(config, pages.view(), slots, rows, rows);
      },
      context);
  EXPECT_EQ(result.error(), Errc::kCancelled);
  EXPECT_TRUE(write_kv(config, pages.view(), slots, rows, rows).has_value());
}

TEST(WriteKv, RefusesSlotsOutsideThePagesAndWritesNothing) {
  const AttentionConfig config = {
      .num_q_heads = 1, .num_kv_heads = 1, .head_dim = 4, .page_size = 2, .kv_dtype = DType::f32};
  Pages pages(config, 3);
  const std::vector<std::byte> before = pages.bytes;
  const std::vector<float> rows(8);
  for (const std::int64_t slot : {std::int64_t{6}, INT64_MAX}) {
    const std::vector<std::int64_t> slots = {0, slot};
    EXPECT_EQ(write_kv(config, pages.view(), slots, rows, rows).error(), Errc::kInvalidArgument);
  }
  EXPECT_TRUE(pages.bytes == before);
}

TEST(WriteKv, RefusesSizesAndViewsThatDoNotFit) {
  const AttentionConfig config = {
      .num_q_heads = 1, .num_kv_heads = 1, .head_dim = 4, .page_size = 2, .kv_dtype = DType::f32};
  Pages pages(config, 3);
  const std::vector<float> row(4), longer(5);
  const std::vector<std::int64_t> slots = {0};
  EXPECT_EQ(write_kv(config, pages.view(), slots, longer, row).error(), Errc::kInvalidArgument);
  EXPECT_EQ(write_kv(config, pages.view(), slots, row, longer).error(), Errc::kInvalidArgument);
  KvWriteView view = pages.view();
  view.v = nullptr;
  EXPECT_EQ(write_kv(config, view, slots, row, row).error(), Errc::kInvalidArgument);
  view = pages.view();
  view.k_token_stride = 3;
  EXPECT_EQ(write_kv(config, view, slots, row, row).error(), Errc::kInvalidArgument);
  for (const std::int64_t num_pages : {std::int64_t{-1}, std::int64_t{0}, INT64_MAX}) {
    view = pages.view();
    view.num_pages = num_pages;
    EXPECT_EQ(write_kv(config, view, slots, row, row).error(), Errc::kInvalidArgument);
  }
  const std::vector<std::int64_t> beyond_any_address = {INT64_MAX - 3};
  view.num_pages = INT64_MAX / 2;
  EXPECT_EQ(write_kv(config, view, beyond_any_address, row, row).error(), Errc::kInvalidArgument);
  EXPECT_TRUE(write_kv(config, pages.view(), {}, ConstTensor(), ConstTensor()).has_value());
}

}  // namespace
}  // namespace pagedkv
