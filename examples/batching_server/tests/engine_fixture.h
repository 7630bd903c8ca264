// A decoder, a pool and an engine for tests, stepped by hand; it collects what listeners hear.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <vector>

#include "engine/engine.h"
#include "model/decoder.h"
#include "model/tensor_source.h"

namespace serving::testing {

struct HarnessOptions {
  std::uint32_t page_size = 8;
  std::uint64_t pages = 512;
  pagedkv::DType kv_dtype = pagedkv::DType::f32;
  std::int32_t window_left = -1;
  bool breaks_every_step = false;  ///< The pool is for another shape than the decoder's, so its writes are refused.
  EngineOptions engine = {};
};

class Harness {
 public:
  struct Heard {
    std::map<std::uint32_t, std::vector<Token>> tokens;  // By choice.
    std::map<std::uint32_t, FinishReason> finish;
    std::uint64_t cached_tokens = 0;
  };

  Harness(Decoder& decoder, const HarnessOptions& options)
      : cache_(make_cache(decoder, options)), engine_(decoder, cache_, options.engine) {}

  /// Submits a request and returns where its events go.
  std::shared_ptr<Heard> submit(Request request, RequestId* id = nullptr) {
    auto heard = std::make_shared<Heard>();
    const SubmitError refused = engine_.submit(
        std::move(request),
        [heard](const Event& event) {
          heard->cached_tokens = event.cached_tokens;
          if (event.finish == FinishReason::kNone) {
            heard->tokens[event.choice].push_back(event.token);
          } else {
            EXPECT_FALSE(heard->finish.contains(event.choice)) << "a choice ended twice";
            heard->finish[event.choice] = event.finish;
          }
          return true;
        },
        id);
    EXPECT_EQ(refused, SubmitError::kNone);
    return heard;
  }

  void run_until_idle() {
    for (int steps = 0; engine_.step(); ++steps) ASSERT_LT(steps, 100'000) << "no progress";
  }

  /// The first choice of one request, alone.
  std::vector<Token> generate(const Request& request) {
    const auto heard = submit(request);
    run_until_idle();
    return heard->tokens[0];
  }

  void expect_no_page_held() {
    EXPECT_EQ(cache_.stats().pool.used_pages, 0U);
    EXPECT_EQ(cache_.stats().open_sequences, 0U);
    EXPECT_EQ(cache_.pages_available(), cache_.stats().pool.capacity_pages);
  }

  [[nodiscard]] Engine& engine() { return engine_; }
  [[nodiscard]] pagedkv::KvCache& cache() { return cache_; }

 private:
  static pagedkv::KvCache make_cache(Decoder& decoder, const HarnessOptions& options) {
    pagedkv::ModelShape shape = decoder.kv_shape(options.kv_dtype);
    if (options.breaks_every_step) shape.head_dim *= 2;
    auto cache = pagedkv::KvCache::create({.shape = shape,
                                           .page_size = options.page_size,
                                           .capacity_pages = options.pages,
                                           .attention = {.window_left = options.window_left}});
    EXPECT_TRUE(cache.has_value()) << cache.error().what;
    return std::move(cache).value();
  }

  pagedkv::KvCache cache_;
  Engine engine_;
};

}  // namespace serving::testing
