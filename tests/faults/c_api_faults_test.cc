// Every function of the C interface with the n-th allocation failing, or the n-th call of the system, for every n until
// it is through. A call that fails has a promised code, wrote no result and changed nothing; made again, it does what
// it does in a world where nothing ever failed.
#include <gtest/gtest.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task.h>

#include <array>
#include <cstdint>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "faults/c_api_world.h"
#include "support/failing_new.h"
#include "support/failing_os.h"

namespace pagedkv::testing {
namespace {

struct Call {
  const char* function;
  pagedkv_status (*make)(World&);
};

const std::array<std::int32_t, 6> kOtherTokens{9, 8, 7, 6, 5, 4};
const pagedkv_open_options kOpen = World::open_options();
const pagedkv_cache_options kCache = World::cache_options();
const pagedkv_pool_options kPool = World::pool_options();
const pagedkv_dense_options kDense = World::dense_options();
const pagedkv_attention_config kConfig = World::plan_config();
const pagedkv_kv_view kView = World::view();
const std::int32_t kSeqLen = 3, kLongerSeqLen = 8;
const std::array<std::uint32_t, 1> kAccepted{1};
const std::array<std::int64_t, 2> kSlots{0, -1};
const std::array<float, 1> kSinks{0.5F};
std::array<float, 128 * kDim> scratch{};
std::array<float, 1> scratch_lse{};

pagedkv_status begin_step_of_two(World& w) {
  const std::array<pagedkv_step_item, 2> items{{{w.prompt, 1, kOtherTokens.data(), 1}, {w.branch, 4, nullptr, 0}}};
  return w.keep(pagedkv_step_close, pagedkv_cache_begin_step(w.cache, items.data(), items.size(), &w.result));
}
pagedkv_status pages_needed(World& w) {
  const pagedkv_step_item item{w.branch, 4, nullptr, 0};
  return pagedkv_cache_pages_needed(w.cache, &item, 1, &w.result);
}
template <class T, auto kFunction, class Handle>
pagedkv_status ask(Handle handle) {
  T to{};
  if constexpr (requires { to.struct_size; }) to.struct_size = sizeof to;
  return kFunction(handle, &to);
}
pagedkv_status create_store(World& w) {
  const std::array<pagedkv_store_group, 2> groups{{{0, 0}, {4, 2}}};
  return w.keep(pagedkv_store_close, pagedkv_store_create(w.pool, kPageSize, groups.data(), groups.size(), &w.result));
}
pagedkv_status create_plan(World& w) {
  const pagedkv_attention_batch batch = w.batch(kSeqLen);
  return w.keep(pagedkv_plan_close, pagedkv_plan_create(&kConfig, &batch, nullptr, 0, &w.result));
}
pagedkv_status extend_plan(World& w) {
  const pagedkv_attention_batch batch = w.batch(kLongerSeqLen);
  return pagedkv_plan_extend(w.plan, &batch);
}
pagedkv_status ask_workspace(World& w) {
  const pagedkv_attention_batch batch = w.batch(kSeqLen);
  return pagedkv_plan_workspace_bytes(&kConfig, &batch, &w.result);
}
pagedkv_status free_interleaved(std::uint64_t handle) {
  kvcache_free(reinterpret_cast<kvcache*>(handle));
  return PAGEDKV_OK;
}
pagedkv_status create_interleaved(World& w) {
  kvcache* const made = kvcache_create(100, kDim);
  if (made == nullptr) return PAGEDKV_OUT_OF_MEMORY;  // it tells no code
  w.result = reinterpret_cast<std::uintptr_t>(made);
  return w.keep(free_interleaved, PAGEDKV_OK);
}
pagedkv_status ask_cpu() {
  pagedkv_cpu_info info{};
  info.struct_size = sizeof info;
  return pagedkv_get_cpu_info(&info);
}
pagedkv_status ask_view(World& w) {
  pagedkv_kv_view view{};
  return pagedkv_cache_view(w.cache, 1, &view);
}
pagedkv_status ask_page(World& w) {
  void* data = nullptr;
  return pagedkv_pool_page_data(w.pool, 0, &data);
}
pagedkv_status ask_dense(World& w) {
  pagedkv_dense_kv kv{};
  kv.struct_size = sizeof kv;
  return pagedkv_dense_get(w.dense, 0, &kv);
}
pagedkv_status write_rows() {
  pagedkv_kv_view to = kView;
  to.k = to.v = scratch.data();
  return pagedkv_write_kv(&kConfig, &to, kSlots.data(), kSlots.size(), World::rows(2), World::rows(2));
}
void ignore_event(void*, const pagedkv_event*) noexcept {}

// A call of `function`; one that makes a handle, which `close` closes; a call with more to it, in a function of its
// own.
#define CALL(function, ...) \
  {#function, []([[maybe_unused]] World& w) -> pagedkv_status { return function(__VA_ARGS__); }}
#define MAKE(function, close, ...) \
  {#function, [](World& w) -> pagedkv_status { return w.keep(close, function(__VA_ARGS__, &w.result)); }}
#define AS(function, ...) {#function, []([[maybe_unused]] World& w) -> pagedkv_status { return __VA_ARGS__; }}

const std::vector<Call> kCalls{
    AS(pagedkv_get_cpu_info, ask_cpu()),
    CALL(pagedkv_target_at, 0, &w.text, &w.text, &w.number),
    CALL(pagedkv_find_target, {"scalar", 6}, &w.result),
    CALL(pagedkv_active_target, &w.text),
    MAKE(pagedkv_cache_create, pagedkv_cache_close, &kCache),
    CALL(pagedkv_cache_close, w.cache),
    MAKE(pagedkv_cache_open, pagedkv_sequence_close, w.cache, kOtherTokens.data(), kOtherTokens.size(), &kOpen),
    AS(pagedkv_cache_begin_step, begin_step_of_two(w)),
    CALL(pagedkv_cache_pages_available, w.cache, &w.result),
    CALL(pagedkv_cache_pages_for_tokens, w.cache, 5, 1, &w.result),
    AS(pagedkv_cache_pages_needed, pages_needed(w)),
    CALL(pagedkv_cache_can_admit, w.cache, 5, 1, 1, &w.number),
    AS(pagedkv_cache_get_stats, ask<pagedkv_cache_stats, pagedkv_cache_get_stats>(w.cache)),
    AS(pagedkv_cache_get_info, ask<pagedkv_cache_info, pagedkv_cache_get_info>(w.cache)),
    CALL(pagedkv_cache_page_bytes, w.cache, &w.result),
    AS(pagedkv_cache_view, ask_view(w)),
    CALL(pagedkv_cache_page_table_of, w.cache, 1, &w.result),
    CALL(pagedkv_cache_trim, w.cache, &w.result),
    CALL(pagedkv_cache_set_capacity, w.cache, 4096),
    CALL(pagedkv_cache_pin, w.cache, kPromptTokens.data(), kPromptTokens.size(), &kOpen, &w.result),
    CALL(pagedkv_cache_unpin, w.cache, w.pin),
    CALL(pagedkv_cache_clear_prefixes, w.cache),
    MAKE(pagedkv_cache_pool, pagedkv_pool_close, w.cache),
    CALL(pagedkv_cache_poll_events, w.cache, ignore_event, nullptr, &w.result),

    CALL(pagedkv_sequence_close, w.branch),
    CALL(pagedkv_sequence_append, w.branch, 70),
    CALL(pagedkv_sequence_append, w.stored, 20),
    CALL(pagedkv_sequence_truncate, w.branch, 1),
    CALL(pagedkv_sequence_slide, w.branch, 1, 0, 0, &w.result),
    MAKE(pagedkv_sequence_fork, pagedkv_sequence_close, w.prompt),
    CALL(pagedkv_sequence_num_tokens, w.prompt, &w.result),
    CALL(pagedkv_sequence_cached_tokens, w.prompt, &w.result),
    CALL(pagedkv_sequence_num_groups, w.prompt, &w.result),
    CALL(pagedkv_sequence_page_size, w.prompt, reinterpret_cast<std::uint32_t*>(&w.number)),
    CALL(pagedkv_sequence_pages_needed, w.prompt, 9, &w.result),
    CALL(pagedkv_sequence_pages, w.prompt, 0, &w.number, 1, &w.result),
    CALL(pagedkv_sequence_tokens, w.prompt, &w.number, 1, &w.result),

    CALL(pagedkv_step_write, w.step, 0, World::rows(3), World::rows(3)),
    CALL(pagedkv_step_attend, w.step, 1, World::rows(3), w.output(3), nullptr, 0),
    CALL(pagedkv_step_commit, w.step),
    CALL(pagedkv_step_commit_partial, w.step, kAccepted.data(), kAccepted.size()),
    CALL(pagedkv_step_rollback, w.step),
    CALL(pagedkv_step_num_rows, w.step, &w.result),
    CALL(pagedkv_step_num_items, w.step, &w.result),
    CALL(pagedkv_step_close, w.step),

    MAKE(pagedkv_pool_create, pagedkv_pool_close, &kPool),
    CALL(pagedkv_pool_close, w.pool),
    CALL(pagedkv_pool_allocate, w.pool, w.pages.data(), w.pages.size()),
    CALL(pagedkv_pool_retain, w.pool, w.pages.data(), w.pages.size()),
    CALL(pagedkv_pool_release, w.pool, w.pages.data(), w.pages.size()),
    CALL(pagedkv_pool_ref_count, w.pool, w.pages[0], reinterpret_cast<std::uint32_t*>(&w.number)),
    CALL(pagedkv_pool_is_evictable, w.pool, w.pages[0], &w.number),
    CALL(pagedkv_pool_available, w.pool, &w.result),
    CALL(pagedkv_pool_can_allocate, w.pool, 3, &w.number),
    CALL(pagedkv_pool_memory, w.pool, nullptr, &w.result, nullptr),
    AS(pagedkv_pool_page_data, ask_page(w)),
    AS(pagedkv_pool_get_stats, ask<pagedkv_pool_stats, pagedkv_pool_get_stats>(w.pool)),
    CALL(pagedkv_pool_trim, w.pool, &w.result),
    CALL(pagedkv_pool_set_capacity, w.pool, 4096),

    AS(pagedkv_store_create, create_store(w)),
    CALL(pagedkv_store_close, w.store),
    MAKE(pagedkv_store_open, pagedkv_sequence_close, w.store),
    CALL(pagedkv_store_open_sequences, w.store, &w.result),

    AS(pagedkv_plan_workspace_bytes, ask_workspace(w)),
    AS(pagedkv_plan_create, create_plan(w)),
    AS(pagedkv_plan_extend, extend_plan(w)),
    CALL(pagedkv_plan_run, w.plan, &kView, World::rows(1), w.output(1), nullptr, 0),
    CALL(pagedkv_plan_run_with_sinks, w.plan, &kView, World::rows(1), w.output(1), nullptr, 0, kSinks.data(), 1),
    CALL(pagedkv_plan_num_rows, w.plan, &w.result),
    CALL(pagedkv_plan_target, w.plan, &w.text),
    CALL(pagedkv_plan_kv_bytes, w.plan, &w.result),
    AS(pagedkv_plan_flops, ask<double, pagedkv_plan_flops>(w.plan)),
    CALL(pagedkv_plan_close, w.plan),
    AS(pagedkv_write_kv, write_rows()),
    CALL(pagedkv_merge_states, scratch.data(), scratch_lse.data(), scratch.data() + kDim, kSinks.data(), 1, kDim),

    MAKE(pagedkv_dense_create, pagedkv_dense_close, &kDense),
    CALL(pagedkv_dense_page_bytes, &kDense, &w.result),
    CALL(pagedkv_dense_close, w.dense),
    CALL(pagedkv_dense_update, w.dense, 1, World::rows(2 * 40), World::rows(2 * 40), nullptr),
    AS(pagedkv_dense_get, ask_dense(w)),
    CALL(pagedkv_dense_copy, w.dense, 0, w.output(2 * 3), w.output(2 * 3)),
    CALL(pagedkv_dense_seq_length, w.dense, 0, &w.result),
    CALL(pagedkv_dense_reset, w.dense),
    CALL(pagedkv_dense_cached_attention, w.dense, 0, World::rows(2 * 4), World::rows(2 * 4), World::rows(2 * 4),
         w.output(2 * 4)),
    AS(pagedkv_dense_get_stats, ask<pagedkv_pool_stats, pagedkv_dense_get_stats>(w.dense)),

    AS(kvcache_create, create_interleaved(w)),
    CALL(kvcache_append, w.interleaved, scratch.data(), scratch.data(), 128),
    CALL(kvcache_reset, w.interleaved),
    CALL(kvcache_attend, w.interleaved, scratch.data(), scratch.data()),
    CALL(kvcache_attend_last, w.interleaved, scratch.data(), 3, scratch.data()),
};

// oneTBB ends the process if it cannot set itself up in a thread, which it does at its first use: let it do so before.
void set_up_tbb() {
  oneapi::tbb::parallel_for(0, 64, [](int) {});
  static_cast<void>(oneapi::tbb::task::current_context());
}

enum class Fault { kMemory, kSystem };

void arm(Fault fault, std::int64_t fail_at) {
  (fault == Fault::kMemory ? allocations_until_failure : os_calls_until_failure) = fail_at;
}
/// Whether the failure came.
bool disarm(Fault fault) {
  return std::exchange(fault == Fault::kMemory ? allocations_until_failure : os_calls_until_failure, -1) < 0;
}
bool promised(Fault fault, pagedkv_status status) {
  return status == PAGEDKV_OUT_OF_MEMORY || (fault == Fault::kSystem && status == PAGEDKV_OS_ERROR);
}

/// The names of what differs.
std::string difference(const Snapshot& a, const Snapshot& b) {
  std::string names;
  for (const auto& [name, state] : a) names += b.at(name) == state ? "" : name + "; ";
  return names;
}

/// One call with a failure at `fail_at`. Returns whether the failure came, and counts the calls that reported it.
bool fails_cleanly(const Call& call, Fault fault, std::int64_t fail_at, const Snapshot& done, int& num_failures) {
  SCOPED_TRACE(std::string(call.function) + (fault == Fault::kMemory ? ", allocation " : ", call of the system ") +
               std::to_string(fail_at));
  World world;
  const Snapshot before = world.snapshot();
  arm(fault, fail_at);
  const pagedkv_status status = call.make(world);
  const bool came = disarm(fault);
  if (status != PAGEDKV_OK) {
    EXPECT_TRUE(came && promised(fault, status)) << pagedkv_status_name(status) << ": " << pagedkv_last_error();
    EXPECT_EQ(difference(before, world.snapshot()), "");
    EXPECT_EQ(world.result, kUntouched);
    EXPECT_EQ(call.make(world), PAGEDKV_OK) << pagedkv_last_error();
    ++num_failures;
  }
  const bool is_done = status != PAGEDKV_OK || !came;
  EXPECT_EQ(is_done ? difference(done, world.snapshot()) : "", "");
  return came;
}

TEST(CApiFaults, AFailureAnywhereInAnyCallChangesNothing) {
  set_up_tbb();
  int num_failures = 0;
  for (const Call& call : kCalls) {
    World world;
    ASSERT_EQ(call.make(world), PAGEDKV_OK) << call.function << ": " << pagedkv_last_error();
    const Snapshot done = world.snapshot();
    for (const Fault fault : {Fault::kMemory, Fault::kSystem}) {
      const std::int64_t mapped_before = mapped_os_bytes;
      for (std::int64_t fail_at = 0; fails_cleanly(call, fault, fail_at, done, num_failures); ++fail_at) {
        ASSERT_LT(fail_at, 10000) << call.function << " is never through";
      }
      EXPECT_EQ(mapped_os_bytes, mapped_before) << call.function << " leaks address space";
    }
  }
  EXPECT_GT(num_failures, 120);
}

// Handles lie in chunks: now and then one must be allocated for the handle itself, when the object could be had.
TEST(CApiFaults, ACallThatHasNoRoomForItsHandleChangesNothing) {
  set_up_tbb();
  for (const Call& call : kCalls) {
    World trial;
    ASSERT_EQ(call.make(trial), PAGEDKV_OK);
    if (trial.num_made() == 0) continue;
    SCOPED_TRACE(call.function);
    World world;
    bool had_no_room = false;
    for (int i = 0; i < 2000 && !had_no_room; ++i) {
      if (std::string(call.function) == "pagedkv_cache_begin_step") world.open_others();
      const Snapshot before = world.snapshot();
      for (std::int64_t fail_at = 0;; ++fail_at) {
        arm(Fault::kMemory, fail_at);
        const pagedkv_status status = call.make(world);
        if (!disarm(Fault::kMemory) || status == PAGEDKV_OK) break;
        had_no_room = had_no_room || std::string(pagedkv_last_error()) == "no memory for a handle";
        ASSERT_EQ(difference(before, world.snapshot()), "") << "allocation " << fail_at;
      }
    }
    EXPECT_TRUE(had_no_room);
  }
}

TEST(CApiFaults, EveryFunctionThatMayFailIsTried) {
  std::ifstream header(PAGEDKV_C_HEADER);
  ASSERT_TRUE(header) << PAGEDKV_C_HEADER;
  std::stringstream text;
  text << header.rdbuf();
  const std::string source = text.str();
  std::set<std::string> tried;
  for (const Call& call : kCalls) tried.insert(call.function);
  const std::regex declaration(R"(PAGEDKV_API\s+(?:pagedkv_status|int32_t|kvcache\*)\s+(\w+)\()");
  int num_functions = 0;
  for (std::sregex_iterator at(source.begin(), source.end(), declaration), end; at != end; ++at, ++num_functions) {
    EXPECT_EQ(tried.count((*at)[1]), 1U) << (*at)[1];
  }
  EXPECT_GT(num_functions, 80);
}

}  // namespace
}  // namespace pagedkv::testing
