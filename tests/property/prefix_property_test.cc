// Random operations on cached sequences against the naive model, with every policy, and with a hash that always
// collides.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <string>
#include <vector>

#include "property/prefix_machine.h"
#include "property/random_ops.h"

namespace rc {
template <>
struct Arbitrary<pagedkv::testing::PrefixOp> {
  static Gen<pagedkv::testing::PrefixOp> arbitrary() {
    using Op = pagedkv::testing::PrefixOp;
    return gen::build<Op>(gen::set(&Op::kind, gen::inRange(0U, pagedkv::testing::PrefixMachine::kNumKinds)),
                          gen::set(&Op::a, gen::inRange(0U, 256U)), gen::set(&Op::b, gen::inRange(0U, 65536U)),
                          gen::set(&Op::c, gen::arbitrary<std::uint32_t>()));
  }
};
}  // namespace rc

namespace pagedkv::testing {

void showValue(const PrefixOp& op, std::ostream& os) {
  os << "{" << op.kind << ", " << op.a << ", " << op.b << ", " << op.c << "}";
}

namespace {

std::uint64_t same_hash(const Token*, std::size_t, std::uint64_t) noexcept { return 7; }

// Time passes by a millisecond a look.
std::uint64_t ticking_clock() noexcept {
  static std::uint64_t now = 0;
  return ++now;
}

PrefixCacheOptions make_options(int variant) {
  PrefixCacheOptions options{.now_ms = &ticking_clock};
  if (variant == 1) options.hash = &same_hash;
  if (variant == 2) options.policy = make_s3fifo_policy().value();
  if (variant == 3) options.policy = make_arc_policy().value();
  return options;
}

RC_GTEST_PROP(PrefixProperty, AnyOperationsAgreeWithTheModel, (const std::vector<PrefixOp>& ops)) {
  const auto page_size = *rc::gen::inRange<std::uint32_t>(1, 5);
  PrefixMachine machine(page_size, make_options(*rc::gen::inRange(0, 4)));
  for (const PrefixOp& op : ops) {
    machine.apply(op);
    machine.check_all();
    RC_ASSERT(!::testing::Test::HasFailure());
  }
  machine.finish();
  RC_ASSERT(!::testing::Test::HasFailure());
}

class PrefixRandom : public ::testing::TestWithParam<int> {};

TEST_P(PrefixRandom, LongRunAgreesWithTheModel) {
  std::mt19937_64 random = random_engine();
  PrefixMachine machine(3, make_options(GetParam()));
  const std::uint64_t num_ops = num_random_ops(60'000);
  for (std::uint64_t i = 0; i < num_ops; ++i) {
    const std::uint64_t bits = random();
    machine.apply({.kind = static_cast<std::uint32_t>(bits & 15U),
                   .a = static_cast<std::uint32_t>((bits >> 4) & 255U),
                   .b = static_cast<std::uint32_t>((bits >> 12) & 65535U),
                   .c = static_cast<std::uint32_t>(bits >> 32)});
    if (i % 64 == 0) machine.check_all();
    ASSERT_FALSE(HasFailure()) << "operation " << i;
  }
  machine.check_all();
  machine.finish();
}

std::string variant_name(const ::testing::TestParamInfo<int>& variant) {
  constexpr const char* kNames[] = {"Lru", "AllHashesCollide", "S3Fifo", "Arc"};
  return kNames[variant.param];
}

INSTANTIATE_TEST_SUITE_P(Policies, PrefixRandom, ::testing::Values(0, 1, 2, 3), variant_name);

}  // namespace
}  // namespace pagedkv::testing
