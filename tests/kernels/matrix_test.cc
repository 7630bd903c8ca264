// The test matrices of other systems' attention kernels, at their tolerances and within our own bounds: shapes, page
// sizes, variants and lengths of vLLM, SGLang, FlashInfer and OpenVINO (docs/NUMERICS.md lists which is where).
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "kernels/expect_oracle.h"

namespace pagedkv::testing {
namespace {

/// Absolute and relative error of an output that a system allows for pages of f32 and f16, and of bf16.
struct Tolerance {
  double absolute, relative, bf16_absolute, bf16_relative;
};
constexpr Tolerance kVllm = {1e-3, 1e-3, 1.5e-2, 1e-2};  // ours for f32 and f16; they allow 1.5e-2 there too
constexpr Tolerance kSglang = {1e-3, 1e-3, 1e-2, 1e-2};  // likewise
constexpr Tolerance kFlashInfer = {1e-3, 1e-3, 1e-2, 1e-2};
constexpr Tolerance kOpenVino = {1e-3, 1e-3, 1e-2, 1e-2};

/// Query heads, kv heads, dims of K and of V.
struct Heads {
  std::uint32_t q, kv, dim, v_dim = 0;
};

ProblemShape shape_of(Heads heads, std::vector<SequenceShape> sequences, std::uint32_t page_size = 16) {
  ProblemShape shape;
  shape.config = {.num_q_heads = heads.q,
                  .num_kv_heads = heads.kv,
                  .head_dim = heads.dim,
                  .v_head_dim = heads.v_dim,
                  .page_size = page_size};
  shape.sequences = std::move(sequences);
  return shape;
}

/// Some rows of a batch: of each sequence the first two, the last two and up to 12 between.
std::vector<std::int32_t> sample_rows(std::span<const std::int32_t> qo_indptr) {
  std::vector<std::int32_t> rows;
  for (std::size_t i = 0; i + 1 < qo_indptr.size(); ++i) {
    const std::int32_t first = qo_indptr[i], count = qo_indptr[i + 1] - first, step = std::max(1, count / 12);
    for (std::int32_t row = 0; row < count; ++row) {
      if (row < 2 || row + 2 >= count || row % step == 0) rows.push_back(first + row);
    }
  }
  return rows;
}

/// The oracle's rows `rows` of a problem without masks: each as a sequence of its own.
Outputs reference_of(const Problem& problem, std::span<const std::int32_t> rows) {
  const AttentionBatch all = problem.batch();
  const ConstTensor queries = problem.queries();
  const std::size_t row_bytes =
      queries.num_elements / static_cast<std::size_t>(all.qo_indptr.back()) * size_of(queries.dtype);
  std::vector<std::int32_t> qo = {0}, table, lengths, positions;
  std::vector<std::byte> q;
  const std::int64_t page_size = problem.config().page_size;
  std::int64_t stride = 0;
  for (std::size_t i = 0; i + 1 < all.kv_indptr.size(); ++i) {
    stride = std::max<std::int64_t>(stride, all.kv_indptr[i + 1] - all.kv_indptr[i]);
  }
  std::size_t sequence = 0;
  for (const std::int32_t row : rows) {
    while (row >= all.qo_indptr[sequence + 1]) ++sequence;
    const std::int32_t first_page = all.kv_indptr[sequence], num_pages = all.kv_indptr[sequence + 1] - first_page;
    const auto length = static_cast<std::int32_t>((num_pages - 1) * page_size + all.kv_last_page_len[sequence]);
    const std::int32_t start =
        all.q_start.empty() ? length - (all.qo_indptr[sequence + 1] - all.qo_indptr[sequence]) : all.q_start[sequence];
    qo.push_back(qo.back() + 1);
    lengths.push_back(length);
    positions.push_back(start + row - all.qo_indptr[sequence]);
    table.resize(table.size() + static_cast<std::size_t>(stride));
    std::copy_n(all.kv_indices.begin() + first_page, num_pages, table.end() - stride);
    const auto* const from = static_cast<const std::byte*>(queries.data) + static_cast<std::size_t>(row) * row_bytes;
    q.insert(q.end(), from, from + row_bytes);
  }
  const AttentionBatch batch = {
      .qo_indptr = qo, .block_table = table, .block_table_stride = stride, .seq_lens = lengths, .q_start = positions};
  const AttentionConfig& config = problem.config();
  const std::size_t v_dim = config.v_head_dim != 0 ? config.v_head_dim : config.head_dim;
  Outputs outputs;
  outputs.lse.resize(rows.size() * config.num_q_heads);
  outputs.out.resize(outputs.lse.size() * v_dim);
  const Result<void> done =
      reference_attention(config, batch, problem.view(), {q.data(), q.size() / size_of(queries.dtype), queries.dtype},
                          outputs.out, outputs.lse);
  EXPECT_TRUE(done.has_value()) << done.error().what;
  return outputs;
}

/// The rows `rows` of what a kernel computed.
Outputs rows_of(const Outputs& all, std::span<const std::int32_t> rows, std::size_t num_rows) {
  Outputs some;
  const std::size_t heads = all.lse.size() / num_rows, elements = all.out.size() / num_rows;
  for (const std::int32_t row : rows) {
    const auto at = static_cast<std::ptrdiff_t>(row);
    const auto lse = all.lse.begin() + at * static_cast<std::ptrdiff_t>(heads);
    const auto out = all.out.begin() + at * static_cast<std::ptrdiff_t>(elements);
    some.lse.insert(some.lse.end(), lse, lse + static_cast<std::ptrdiff_t>(heads));
    some.out.insert(some.out.end(), out, out + static_cast<std::ptrdiff_t>(elements));
  }
  return some;
}

void expect_within(const Outputs& got, const Outputs& want, double absolute, double relative) {
  for (std::size_t i = 0; i < want.out.size(); ++i) {
    ASSERT_LE(std::fabs(got.out[i] - want.out[i]), absolute + relative * std::fabs(want.out[i])) << "out " << i;
  }
  for (std::size_t i = 0; i < want.lse.size(); ++i) {
    if (std::isinf(want.lse[i])) continue;  // compared by Problem::difference
    ASSERT_LE(std::fabs(got.lse[i] - want.lse[i]), absolute + relative * std::fabs(want.lse[i])) << "lse " << i;
  }
}

/// Millions of (query, key, head, dim) of the batch: what a slow target should not be asked for.
double size_of_problem(const ProblemShape& shape) {
  double pairs = 0;
  for (const SequenceShape& s : shape.sequences) pairs += static_cast<double>(s.q_len) * s.kv_len;
  return pairs * shape.config.num_q_heads * shape.config.head_dim * 1e-6;
}

/// A problem in every format and on every target, sampled rows against the oracle. Large problems are left out on the
/// targets without wide vectors, which share their kernels' source with the others.
void expect_matrix(const ProblemShape& base, const Tolerance& tolerance) {
  for (const StoredFormat& format : kStoredFormats) {
    ProblemShape shape = base;
    format.set(shape.config);
    shape.q_dtype = format.dtype;
    const std::vector<const char*> targets = targets_of(shape.config);
    if (targets.empty()) continue;
    const Problem problem(shape);
    const std::vector<std::int32_t> rows = sample_rows(problem.batch().qo_indptr);
    const Outputs want = reference_of(problem, rows);
    const bool is_bf16 = format.dtype == DType::bf16 || format.f16_as_bf16;
    for (const char* target : targets) {
      const std::string_view name = target;
      if (size_of_problem(shape) > 50 && (name == "sse4" || name == "scalar")) continue;
      SCOPED_TRACE(std::string(target) + " " + to_string(format));
      const auto all = problem.run(target);
      ASSERT_TRUE(all.has_value()) << all.error().what;
      const Outputs got = rows_of(*all, rows, static_cast<std::size_t>(problem.batch().qo_indptr.back()));
      ASSERT_EQ(problem.difference(got, want, arithmetic_of(target, problem.config())), "");
      ASSERT_NO_FATAL_FAILURE(expect_within(got, want, is_bf16 ? tolerance.bf16_absolute : tolerance.absolute,
                                            is_bf16 ? tolerance.bf16_relative : tolerance.relative));
    }
  }
}

std::vector<SequenceShape> decode(std::initializer_list<std::int32_t> lengths) {
  std::vector<SequenceShape> sequences;
  for (const std::int32_t length : lengths) sequences.push_back({length, 1});
  return sequences;
}

// vLLM, tests/kernels/attention/test_cpu_attn.py ----------------------------------------------------------------------

const std::vector<SequenceShape> kVllmDecode = decode({213, 1, 312, 7, 7812});
const std::vector<SequenceShape> kVllmPrefill = {{2345, 2345}, {5, 5}, {16, 3}, {5131, 134}};
const std::vector<SequenceShape> kVllmMixed = {{2456, 992}, {1234, 1}, {1145, 98}, {4162, 1}, {2345, 2345}};

struct VllmCase {
  const char* name;
  Heads heads;
  const std::vector<SequenceShape>& sequences;
  std::uint32_t page_size;
};

class VllmMatrix : public ::testing::TestWithParam<VllmCase> {
 protected:
  ProblemShape shape() const { return shape_of(GetParam().heads, GetParam().sequences, GetParam().page_size); }
};

TEST_P(VllmMatrix, Plain) { expect_matrix(shape(), kVllm); }

TEST_P(VllmMatrix, WindowOf256) {
  ProblemShape windowed = shape();
  windowed.config.variant.window_left = 255;
  expect_matrix(windowed, kVllm);
}

TEST_P(VllmMatrix, SoftCapOf50WithSinksAndAlibi) {
  ProblemShape bent = shape();
  bent.config.variant.logits_soft_cap = 50;
  bent.sinks = bent.alibi = true;
  expect_matrix(bent, kVllm);
}

INSTANTIATE_TEST_SUITE_P(Cpu, VllmMatrix,
                         ::testing::Values(VllmCase{"Decode_4_4_96", {4, 4, 96}, kVllmDecode, 96},
                                           VllmCase{"Decode_8_2_128", {8, 2, 128}, kVllmDecode, 128},
                                           VllmCase{"Decode_9_3_512", {9, 3, 512}, kVllmDecode, 96},
                                           VllmCase{"Decode_9_3_80", {9, 3, 80}, kVllmDecode, 48},
                                           VllmCase{"Decode_8_2_112", {8, 2, 112}, kVllmDecode, 48},
                                           VllmCase{"Prefill_4_4_96", {4, 4, 96}, kVllmPrefill, 128},
                                           VllmCase{"Prefill_8_2_128", {8, 2, 128}, kVllmPrefill, 96},
                                           VllmCase{"Mixed_9_3_128", {9, 3, 128}, kVllmMixed, 96},
                                           VllmCase{"Mixed_4_4_80", {4, 4, 80}, kVllmMixed, 48}),
                         [](const auto& each) { return each.param.name; });

TEST(VllmMatrix, EncoderWithoutCausality) {
  ProblemShape shape =
      shape_of({4, 4, 96}, {{1, 1}, {678, 678}, {2367, 100}, {145, 145}, {4162, 20}, {36, 36}, {7812, 7}}, 48);
  shape.config.variant.causal = false;
  expect_matrix(shape, kVllm);
}

// SGLang, test/registered/cpu/test_decode.py and test_extend.py
// --------------------------------------------------------

TEST(SglangMatrix, DecodeOverItsHeads) {
  for (const Heads heads :
       {Heads{16, 16, 64, 64}, Heads{16, 1, 16, 16}, Heads{32, 8, 33, 55}, Heads{16, 1, 64, 64}, Heads{64, 1, 13, 13},
        Heads{128, 1, 80, 80}, Heads{128, 2, 512, 512}, Heads{40, 8, 128, 128}}) {
    SCOPED_TRACE(::testing::Message() << heads.q << "/" << heads.kv << " x " << heads.dim << "/" << heads.v_dim);
    ProblemShape shape = shape_of(heads, decode({1024}));
    shape.layout = PageLayout::kTokenMajor;
    expect_matrix(shape, kSglang);
    shape.config.variant.window_left = 10;
    shape.sinks = true;
    expect_matrix(shape, kSglang);
  }
}

TEST(SglangMatrix, DecodeOverLatentPages) {
  for (const Heads heads : {Heads{16, 1, 576, 512}, Heads{22, 1, 576, 512}, Heads{16, 16, 576, 512}}) {
    SCOPED_TRACE(::testing::Message() << heads.q << "/" << heads.kv);
    ProblemShape shape = shape_of(heads, decode({1024}));
    shape.layout = PageLayout::kLatent;
    expect_matrix(shape, kSglang);
  }
}

TEST(SglangMatrix, DecodeAcrossAnEncoderOf10Tokens) {
  ProblemShape shape = shape_of({16, 16, 64}, decode({10, 10}));
  shape.config.variant.causal = false;
  expect_matrix(shape, kSglang);
}

TEST(SglangMatrix, ExtendOverItsShapes) {
  expect_matrix(shape_of({1, 1, 128, 96}, {{123, 50}}), kSglang);
  expect_matrix(shape_of({16, 1, 128, 96}, {{123, 73}}), kSglang);
  expect_matrix(shape_of({16, 4, 128, 96}, {{1230, 700}, {1000, 41}, {300, 299}, {77, 5}}), kSglang);
  expect_matrix(shape_of({16, 1, 32, 32}, {{9000, 500}}), kSglang);
  ProblemShape latent = shape_of({16, 1, 576, 512}, {{123, 60}});
  latent.layout = PageLayout::kLatent;
  expect_matrix(latent, kSglang);
  ProblemShape across = shape_of({16, 4, 128, 96}, {{10, 70, 0}, {33, 20, 0}});
  across.config.variant.causal = false;
  expect_matrix(across, kSglang);
}

TEST(SglangMatrix, ExtendWithSinksAndWindows) {
  for (const auto& [heads, length] :
       {std::pair{Heads{16, 4, 64}, 123}, std::pair{Heads{16, 4, 64}, 20}, std::pair{Heads{1, 1, 64}, 20}}) {
    for (const std::int32_t window : {-1, 10, 128}) {
      for (const bool sinks : {false, true}) {
        ProblemShape shape = shape_of(heads, {{length, length - 7}});
        shape.config.variant.window_left = window;
        shape.sinks = sinks;
        expect_matrix(shape, kSglang);
      }
    }
  }
}

TEST(SglangMatrix, ExtendWhereItOnceFailed) {
  expect_matrix(shape_of({8, 2, 64}, {{5000, 5000}}), kSglang);  // a causal mask where a tile is taller than wide
  expect_matrix(shape_of({16, 4, 128, 96}, {{97 + 37, 37}}), kSglang);
}

// FlashInfer, tests/attention
// ------------------------------------------------------------------------------------------

TEST(FlashInferMatrix, Decode) {
  for (const std::int32_t length : {54, 97, 512, 2048, 16'384}) {
    const std::size_t batch = length > 1000 ? 1 : length > 100 ? 4 : 17;
    for (const auto& [page_size, q_heads, dim] :
         {std::tuple{1U, 4U, 128U}, std::tuple{8U, 32U, 128U}, std::tuple{16U, 32U, 256U}, std::tuple{16U, 4U, 512U}}) {
      if (length > 4000 && dim == 512) continue;  // 128 MiB of pages, for nothing that the others do not reach
      SCOPED_TRACE(::testing::Message() << length << " tokens, page " << page_size << ", dim " << dim);
      expect_matrix(shape_of({q_heads, 4, dim}, std::vector<SequenceShape>(batch, {length, 1}), page_size),
                    kFlashInfer);
    }
  }
  expect_matrix(shape_of({32, 4, 128}, std::vector<SequenceShape>(128, {54, 1}), 8), kFlashInfer);
}

TEST(FlashInferMatrix, Prefill) {
  for (const auto& [rows, page_size, dim] :
       {std::tuple{37, 1U, 64U}, std::tuple{17, 5U, 128U}, std::tuple{127, 16U, 256U}, std::tuple{577, 5U, 64U},
        std::tuple{37, 16U, 128U}, std::tuple{577, 16U, 128U}}) {
    for (const std::int32_t length : {97, 577, 2048}) {
      if (length < rows) continue;
      for (const bool causal : {false, true}) {
        SCOPED_TRACE(::testing::Message() << rows << " rows over " << length << ", page " << page_size);
        ProblemShape shape = shape_of({4, 1, dim}, {{length, rows}, {rows, rows}}, page_size);
        shape.config.variant.causal = causal;
        expect_matrix(shape, kFlashInfer);
      }
    }
  }
}

TEST(FlashInferMatrix, PagesThatAreNotContiguous) {
  for (const auto& [batch, page_size, q_heads, kv_heads, dim] :
       {std::tuple{1U, 1U, 4U, 1U, 64U}, std::tuple{19U, 5U, 8U, 4U, 128U}, std::tuple{99U, 1U, 8U, 8U, 64U},
        std::tuple{19U, 1U, 4U, 4U, 256U}}) {
    for (const PageLayout layout : {PageLayout::kTokenMajor, PageLayout::kApart}) {
      ProblemShape shape = shape_of({q_heads, kv_heads, dim}, std::vector<SequenceShape>(batch, {37, 19}), page_size);
      shape.layout = layout;
      expect_matrix(shape, kFlashInfer);
    }
  }
}

TEST(FlashInferMatrix, SharedPrefixByCascade) {
  for (const std::int32_t shared : {128, 512, 2048}) {
    for (const std::int32_t own : {37, 17}) {
      for (const std::uint32_t page_size : {own == 37 ? 1U : 16U}) {
        for (const std::int32_t rows : {1, own < 20 ? 16 : own}) {
          ProblemShape shape = shape_of({8, 2, 128}, std::vector<SequenceShape>(4, {shared + own, rows}), page_size);
          shape.share_groups = own == 37 ? 1 : 2;
          shape.config.cascade = true;
          expect_matrix(shape, kFlashInfer);
        }
      }
    }
  }
}

TEST(FlashInferMatrix, Windows) {
  std::vector<SequenceShape> lengths = decode({1, 2, 3, 19, 99, 199, 1000, 1999});
  lengths.insert(lengths.end(), {{19, 19}, {99, 99}, {199, 50}, {533, 500}, {1999, 33}});
  for (const std::int32_t window : {3, 13, 23, 37, 43, 33, 533}) {
    ProblemShape shape = shape_of({4, 1, 128}, lengths, window % 2 == 0 ? 16 : 1);
    shape.config.variant.window_left = window;
    expect_matrix(shape, kFlashInfer);
  }
}

TEST(FlashInferMatrix, SoftCaps) {
  for (const float cap : {1.0F, 30.0F, 50.0F}) {
    ProblemShape shape = shape_of({4, 1, 64}, {{81, 1}, {999, 1}, {33'001, 1}, {721, 128}});
    shape.config.variant.logits_soft_cap = cap;
    expect_matrix(shape, kFlashInfer);
  }
}

TEST(FlashInferMatrix, SinksIncrementalAndInChunks) {
  for (const std::int32_t window : {-1, 128}) {
    for (const std::size_t batch : {1U, 4U, 16U}) {
      std::vector<SequenceShape> sequences(batch, {256, 128});  // a chunk in the middle of a prompt
      sequences.push_back({128, 1});
      sequences.push_back({300, 300});
      ProblemShape shape = shape_of({8, 1, 64}, std::move(sequences));
      shape.config.variant.window_left = window;
      shape.sinks = true;
      expect_matrix(shape, kFlashInfer);
    }
  }
}

// The last rows of a prefill and the same rows decoded one by one are the same rows.
TEST(FlashInferMatrix, DecodeAndPrefillAgreeInOutputAndLse) {
  for (const DType format : {DType::f32, DType::f16, DType::bf16}) {
    for (const std::uint32_t group : {1U, 4U, 8U}) {
      ProblemShape shape = shape_of({group, 1, 128}, {{777, 64}});
      shape.config.kv_dtype = shape.q_dtype = format;
      const Problem prefill(shape);
      for (const char* target : runnable_targets()) {
        SCOPED_TRACE(std::string(target) + " " + to_string(format));
        const auto together = prefill.run(target);
        ASSERT_TRUE(together.has_value());
        for (const std::int32_t row : {0, 31, 63}) {
          const AttentionConfig config = [&] {
            AttentionConfig one = prefill.config();
            one.target = target;
            return one;
          }();
          AttentionBatch batch = prefill.batch();
          const std::int32_t qo[] = {0, 1}, start[] = {777 - 64 + row};
          batch.qo_indptr = qo, batch.q_start = start;
          const auto plan = AttentionPlan::create(config, batch);
          ASSERT_TRUE(plan.has_value());
          std::vector<float> out(group * 128), lse(group);
          const auto* const q = static_cast<const std::byte*>(prefill.queries().data) +
                                static_cast<std::size_t>(row) * group * 128 * size_of(format);
          ASSERT_TRUE(plan->run(prefill.view(), {q, group * 128, format}, out, lse).has_value());
          Outputs alone{{out.begin(), out.end()}, {lse.begin(), lse.end()}, {}, {}};
          const double bound = format == DType::bf16 ? 1e-2 : 1e-3;
          ASSERT_NO_FATAL_FAILURE(expect_within(alone, rows_of(*together, {&row, 1}, 64), bound, bound));
        }
      }
    }
  }
}

// OpenVINO, paged_attn.cpp
// ---------------------------------------------------------------------------------------------

TEST(OpenVinoMatrix, PromptOf10ThenOneTokenInPagesOf32) {
  for (const bool sinks : {false, true}) {
    for (const auto& sequences : {std::vector<SequenceShape>{{10, 10}}, std::vector<SequenceShape>{{11, 1}}}) {
      ProblemShape shape = shape_of({8, 8, 64}, sequences, 32);
      shape.sinks = sinks;
      expect_matrix(shape, kOpenVino);
    }
  }
}

}  // namespace
}  // namespace pagedkv::testing
