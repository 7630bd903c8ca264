// The layout of a page: where every row lies, that rows do not overlap, and which shapes are refused.
#include "cache/page_layout.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pagedkv::cache {
namespace {

ModelShape llama() {
  return {.num_layers = 32, .num_q_heads = 32, .num_kv_heads = 8, .head_dim = 128, .dtype = DType::bf16};
}

TEST(PageLayout, LlamaPageOfSixteenTokensIsExactlyTwoMebibytes) {
  const PageLayout layout = PageLayout::create(llama(), 16).value();
  EXPECT_EQ(layout.page_bytes, 2u << 20);
  EXPECT_EQ(layout.head_stride, 8192u);
  EXPECT_EQ(layout.v_offset, 4096u);
  EXPECT_EQ(layout.layer_stride, 65536u);
}

TEST(PageLayout, ViewOfALayerPointsAtItsRows) {
  const PageLayout layout = PageLayout::create(llama(), 16).value();
  std::byte base{};
  const KvView view = layout.view(&base, 3, 7);
  EXPECT_EQ(static_cast<const std::byte*>(view.k) - &base, 3 * 65536);
  EXPECT_EQ(static_cast<const std::byte*>(view.v) - static_cast<const std::byte*>(view.k), 4096);
  EXPECT_EQ(view.k_token_stride, 256);
  EXPECT_EQ(view.k_head_stride, 8192);
  EXPECT_EQ(view.k_page_stride, 2 << 20);
  EXPECT_EQ(view.num_pages, 7);
}

TEST(PageLayout, PaddingNeverCostsMoreThanAThirtySecond) {
  for (const std::uint32_t dim : {1u, 3u, 31u, 64u, 80u, 127u, 128u, 513u, 1024u}) {
    for (const std::uint32_t page_size : {1u, 3u, 16u, 255u, 256u}) {
      ModelShape shape{.num_layers = 2, .num_q_heads = 4, .num_kv_heads = 2, .head_dim = dim, .v_head_dim = 7};
      const PageLayout layout = PageLayout::create(shape, page_size).value();
      const std::uint64_t payload = 2ull * 2 * page_size * (dim + 7) * 2;
      EXPECT_LE(layout.page_bytes, payload + payload / 32 + 63) << dim << " " << page_size;
      EXPECT_EQ(layout.page_bytes % 64, 0u);
    }
  }
}

// Marks every byte of every row once: a byte hit twice or outside the page is an overlap.
TEST(PageLayout, RowsOfAllLayersHeadsAndTokensAreDisjointAndInsideThePage) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::uint32_t page_size : {1u, 3u, 16u}) {
      const ModelShape shape{
          .num_layers = 3, .num_q_heads = 4, .num_kv_heads = 2, .head_dim = 5, .v_head_dim = 9, .dtype = dtype};
      const PageLayout layout = PageLayout::create(shape, page_size).value();
      std::vector<int> hits(layout.page_bytes, 0);
      const auto mark = [&](std::int64_t begin, std::uint32_t bytes) {
        ASSERT_EQ(static_cast<std::size_t>(begin) % size_of(dtype), 0u);
        for (std::size_t i = 0; i < bytes; ++i) ++hits.at(static_cast<std::size_t>(begin) + i);
      };
      std::byte base{};
      for (std::uint32_t layer = 0; layer < 3; ++layer) {
        const KvView view = layout.view(&base, layer, 1);
        for (std::int64_t head = 0; head < 2; ++head) {
          for (std::int64_t token = 0; token < page_size; ++token) {
            const auto offset = [&](const void* p) { return static_cast<const std::byte*>(p) - &base; };
            mark(offset(view.k) + head * view.k_head_stride + token * view.k_token_stride, layout.k_row_bytes);
            mark(offset(view.v) + head * view.v_head_stride + token * view.v_token_stride, layout.v_row_bytes);
          }
        }
      }
      std::size_t marked = 0;
      for (const int count : hits) {
        EXPECT_LE(count, 1);
        marked += static_cast<std::size_t>(count);
      }
      EXPECT_EQ(marked, 3u * 2 * page_size * (5 + 9) * size_of(dtype));
    }
  }
}

TEST(PageLayout, CopyOfRowsTakesTheFirstTokensAndNothingElse) {
  const ModelShape shape{.num_layers = 2, .num_q_heads = 2, .num_kv_heads = 2, .head_dim = 3, .v_head_dim = 2};
  const PageLayout layout = PageLayout::create(shape, 4).value();
  const std::vector<std::byte> from(layout.page_bytes, std::byte{1});
  std::vector<std::byte> to(layout.page_bytes, std::byte{0});
  layout.copy_rows(to.data(), from.data(), 3);
  std::size_t copied = 0;
  for (const std::byte b : to) copied += static_cast<std::size_t>(b);
  EXPECT_EQ(copied, 2u * 2 * 3 * (3 + 2) * 2);
  const std::size_t row_of_fourth_token = 3u * layout.k_row_bytes;
  EXPECT_EQ(to[row_of_fourth_token], std::byte{0});
  EXPECT_EQ(to[row_of_fourth_token - 1], std::byte{1});
}

TEST(PageLayout, LargestShapeDoesNotOverflow) {
  const ModelShape shape{
      .num_layers = 4096, .num_q_heads = 65536, .num_kv_heads = 65536, .head_dim = 1024, .dtype = DType::f32};
  EXPECT_EQ(PageLayout::create(shape, 256).value().page_bytes, 1ull << 49);
}

TEST(PageLayout, ShapesJustWithinTheirBoundsAreTaken) {
  ModelShape shape{.num_layers = 1, .num_q_heads = 1, .num_kv_heads = 1, .head_dim = 1};
  EXPECT_EQ(PageLayout::create(shape, 1).value().page_bytes, 64u);
  EXPECT_TRUE(PageLayout::create(shape, 256));
  shape = {.num_layers = 4096, .num_q_heads = 65536, .num_kv_heads = 65536, .head_dim = 1024, .v_head_dim = 1024};
  EXPECT_TRUE(PageLayout::create(shape, 1));
  shape.num_q_heads = 65537;
  EXPECT_EQ(PageLayout::create(shape, 1).error(), Errc::kInvalidArgument);
  shape.num_q_heads = shape.num_kv_heads = 131072;
  EXPECT_EQ(PageLayout::create(shape, 1).error(), Errc::kInvalidArgument);
}

TEST(PageLayout, RunsAreAlignedWhereThatCostsAThirtySecondAtMostAndPackedElsewhere) {
  ModelShape shape{.num_layers = 1, .num_q_heads = 1, .num_kv_heads = 1, .head_dim = 1, .v_head_dim = 2};
  EXPECT_EQ(PageLayout::create(shape, 7).value().v_offset, 14u) << "packed";
  shape.head_dim = 496;  // 992 bytes a row: 32 more are over 1/32
  EXPECT_EQ(PageLayout::create(shape, 1).value().v_offset, 992u);
  shape.head_dim = 512;
  EXPECT_EQ(PageLayout::create(shape, 1).value().v_offset, 1024u);
  shape.head_dim = 528;  // 1056 bytes: 32 more are below 1/32
  EXPECT_EQ(PageLayout::create(shape, 1).value().v_offset, 1088u);
}

TEST(PageLayout, ValuesAreAsWideAsKeysIfNothingElseIsSaid) {
  ModelShape shape{.num_layers = 2, .num_q_heads = 4, .num_kv_heads = 2, .head_dim = 64};
  const PageLayout alike = PageLayout::create(shape, 16).value();
  EXPECT_EQ(alike.v_row_bytes, alike.k_row_bytes);
  EXPECT_EQ(alike.num_kv_heads, 2u);
  EXPECT_EQ(alike.page_size, 16u);
  EXPECT_EQ(alike.num_layers, 2u);
  shape.v_head_dim = 32;
  EXPECT_EQ(PageLayout::create(shape, 16).value().v_row_bytes, 64u);
  std::byte base{};
  const KvWriteView view = alike.write_view(&base, 1, 3);
  EXPECT_EQ(view.num_pages, 3);
  EXPECT_EQ(static_cast<std::byte*>(view.k) - &base, static_cast<std::ptrdiff_t>(alike.layer_stride));
  EXPECT_EQ(view.v_head_stride, static_cast<std::int64_t>(alike.head_stride));
  EXPECT_EQ(view.v_page_stride, static_cast<std::int64_t>(alike.page_bytes));
  EXPECT_EQ(view.v_token_stride, alike.v_row_bytes);
}

struct BadShape {
  const char* why;
  ModelShape shape;
  std::uint32_t page_size;
};

TEST(PageLayout, ShapesOutOfRangeAreRefused) {
  const auto with = [](auto change) {
    ModelShape shape = llama();
    change(shape);
    return shape;
  };
  const BadShape cases[] = {
      {"no layers", with([](ModelShape& s) { s.num_layers = 0; }), 16},
      {"too many layers", with([](ModelShape& s) { s.num_layers = 4097; }), 16},
      {"no query heads", with([](ModelShape& s) { s.num_q_heads = 0; }), 16},
      {"no kv heads", with([](ModelShape& s) { s.num_kv_heads = 0; }), 16},
      {"absurd heads", with([](ModelShape& s) { s.num_q_heads = s.num_kv_heads = 1u << 31; }), 16},
      {"heads that do not group", with([](ModelShape& s) { s.num_q_heads = 30; }), 16},
      {"fewer query heads than kv heads", with([](ModelShape& s) { s.num_q_heads = 4; }), 16},
      {"no head_dim", with([](ModelShape& s) { s.head_dim = 0; }), 16},
      {"head_dim too large", with([](ModelShape& s) { s.head_dim = 1025; }), 16},
      {"v_head_dim too large", with([](ModelShape& s) { s.v_head_dim = 0xffffffffu; }), 16},
      {"unknown dtype", with([](ModelShape& s) { s.dtype = static_cast<DType>(200); }), 16},
      {"empty pages", llama(), 0},
      {"pages too long", llama(), 257},
      {"absurd page_size", llama(), 0xffffffffu},
  };
  for (const BadShape& bad : cases) {
    EXPECT_EQ(PageLayout::create(bad.shape, bad.page_size).error(), Errc::kInvalidArgument) << bad.why;
  }
}

}  // namespace
}  // namespace pagedkv::cache
