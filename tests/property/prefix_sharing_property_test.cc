// Random operations on a KvCache with prefix sharing, windows, pins and changing capacity; see sharing_machine.h.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <vector>

#include "random_ops.h"
#include "sharing_machine.h"

namespace pagedkv::testing {
namespace {

rc::Gen<SharingOp> any_op() {
  const auto number = rc::gen::inRange<std::uint32_t>(0, 1u << 20);
  using enum SharingOpKind;
  const auto kind = rc::gen::weightedElement<SharingOpKind>({{6, kOpen},
                                                             {4, kClose},
                                                             {2, kFork},
                                                             {2, kTruncate},
                                                             {12, kStep},
                                                             {1, kPin},
                                                             {1, kUnpin},
                                                             {1, kClear},
                                                             {1, kTrim},
                                                             {1, kCapacity}});
  return rc::gen::construct<SharingOp>(kind, number, number, number);
}

RC_GTEST_PROP(PrefixSharing, NoTokenIsEverSeenWithAnothersRows, ()) {
  SharingCase shape;
  shape.page_size = *rc::gen::inRange<std::uint32_t>(1, 6);
  shape.capacity = *rc::gen::inRange<std::uint32_t>(4, 60);
  shape.window = *rc::gen::inRange(-1, 12);
  shape.sink_tokens = *rc::gen::inRange<std::uint32_t>(0, 8);
  shape.all_slide = *rc::gen::arbitrary<bool>();
  shape.colliding_hash = *rc::gen::arbitrary<bool>();
  const auto ops = *rc::gen::scale(3.0, rc::gen::container<std::vector<SharingOp>>(any_op()));
  SharingMachine machine(shape);
  for (const SharingOp& op : ops) machine.run(op);
  machine.finish();
}

// The long run: PAGEDKV_RANDOM_OPS operations, over a new cache now and then.
TEST(PrefixSharing, HoldsOverALongRandomRun) {
  std::mt19937_64 random = random_engine();
  const auto below = [&random](std::uint32_t bound) { return static_cast<std::uint32_t>(random() % bound); };
  const std::uint64_t num_ops = num_random_ops(30000);
  for (std::uint64_t done = 0; done < num_ops;) {
    SharingCase shape{.page_size = 1 + below(5),
                      .capacity = 4 + below(56),
                      .window = static_cast<std::int32_t>(below(13)) - 1,
                      .sink_tokens = below(2) * below(8),
                      .all_slide = below(2) == 0,
                      .colliding_hash = below(4) == 0};
    SharingMachine machine(shape);
    for (int i = 0; i < 2000 && done < num_ops; ++i, ++done) {
      const std::uint32_t weighted = below(20);  // half of them are steps
      const auto kind = weighted < kNumSharingOps ? static_cast<SharingOpKind>(weighted) : SharingOpKind::kStep;
      ASSERT_NO_THROW(machine.run({kind, below(1u << 20), below(1u << 20), below(1u << 20)})) << "operation " << done;
    }
    ASSERT_NO_THROW(machine.finish());
  }
}

}  // namespace
}  // namespace pagedkv::testing
