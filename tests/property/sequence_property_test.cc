// Random operations on sequences against the naive model: short ones that shrink on failure, and one long run.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <vector>

#include "property/random_ops.h"
#include "property/sequence_machine.h"

namespace rc {
template <>
struct Arbitrary<pagedkv::testing::SequenceOp> {
  static Gen<pagedkv::testing::SequenceOp> arbitrary() {
    using Op = pagedkv::testing::SequenceOp;
    return gen::build<Op>(gen::set(&Op::kind, gen::inRange(0U, pagedkv::testing::SequenceMachine::kNumKinds)),
                          gen::set(&Op::a, gen::inRange(0U, 256U)), gen::set(&Op::b, gen::inRange(0U, 65536U)),
                          gen::set(&Op::c, gen::inRange(0U, 65536U)));
  }
};
}  // namespace rc

namespace pagedkv::testing {

void showValue(const SequenceOp& op, std::ostream& os) {
  os << "{" << op.kind << ", " << op.a << ", " << op.b << ", " << op.c << "}";
}

namespace {

const std::vector<LayerGroup> kFullAndSliding = {{}, {.window_left = 6, .sink_tokens = 3}, {.window_left = 0}};

void run(SequenceMachine& machine, const std::vector<SequenceOp>& ops) {
  for (const SequenceOp& op : ops) {
    machine.apply(op);
    machine.check_all();
    RC_ASSERT(!::testing::Test::HasFatalFailure());
  }
  machine.finish();
  RC_ASSERT(!::testing::Test::HasFatalFailure());
}

RC_GTEST_PROP(SequenceProperty, AnyOperationsAgreeWithTheModel, (const std::vector<SequenceOp>& ops)) {
  const auto page_size = *rc::gen::inRange<std::uint32_t>(1, 9);
  SequenceMachine machine(30, page_size, {});
  run(machine, ops);
}

RC_GTEST_PROP(SequenceProperty, AnyOperationsOnLayerGroupsWithWindowsAgreeWithTheModel,
              (const std::vector<SequenceOp>& ops)) {
  const auto page_size = *rc::gen::inRange<std::uint32_t>(1, 9);
  SequenceMachine machine(60, page_size, kFullAndSliding);
  run(machine, ops);
}

void run_long(const std::vector<LayerGroup>& groups) {
  std::mt19937_64 random = random_engine();
  SequenceMachine machine(48, 4, groups);
  const std::uint64_t num_ops = num_random_ops(200'000);
  for (std::uint64_t i = 0; i < num_ops; ++i) {
    const std::uint64_t bits = random();
    machine.apply({.kind = static_cast<std::uint32_t>(bits & 7U),
                   .a = static_cast<std::uint32_t>((bits >> 3) & 255U),
                   .b = static_cast<std::uint32_t>((bits >> 11) & 65535U),
                   .c = static_cast<std::uint32_t>(bits >> 32)});
    if (i % 256 == 0) machine.check_all();
    ASSERT_FALSE(::testing::Test::HasFatalFailure()) << "operation " << i;
  }
  machine.check_all();
  machine.finish();
}

TEST(SequenceRandom, LongRunAgreesWithTheModel) { run_long({}); }
TEST(SequenceRandom, LongRunWithLayerGroupsAgreesWithTheModel) { run_long(kFullAndSliding); }

}  // namespace
}  // namespace pagedkv::testing
