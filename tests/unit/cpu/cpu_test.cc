// Tests of the CPU room: the list of kernel targets, their names, and what the machine is.
#include <gtest/gtest.h>

#include <cstdlib>

#include "cpu/targets.h"

namespace pagedkv {
namespace {

// Sets PAGEDKV_TARGET for one scope.
class ForcedTarget {
 public:
  explicit ForcedTarget(const char* name) { setenv("PAGEDKV_TARGET", name, 1); }
  ~ForcedTarget() { unsetenv("PAGEDKV_TARGET"); }
  ForcedTarget(const ForcedTarget&) = delete;
  ForcedTarget& operator=(const ForcedTarget&) = delete;
};

TEST(Targets, EndWithOneThatRunsEverywhere) {
  ASSERT_FALSE(targets().empty());
  EXPECT_STREQ(targets().back().name, "scalar");
  EXPECT_TRUE(targets().back().available);
}

TEST(Targets, AreFoundByNameInAnyCase) {
  EXPECT_EQ(find_target("SCALAR").value(), &targets().back());
  EXPECT_EQ(cpu::target_of(*find_target("Scalar").value()), cpu::Target::kScalar);
}

TEST(Targets, OfUnknownNameAreNotFound) {
  EXPECT_EQ(find_target("avx1024").error(), Errc::kNotFound);
  EXPECT_EQ(find_target("").error(), Errc::kNotFound);
  EXPECT_EQ(find_target("scalar ").error(), Errc::kNotFound);
}

TEST(Targets, ActiveOneIsTheBestAvailable) {
  unsetenv("PAGEDKV_TARGET");
  const TargetInfo* const active = active_target().value();
  EXPECT_TRUE(active->available);
  for (const TargetInfo& target : targets()) {
    if (&target == active) break;
    EXPECT_FALSE(target.available) << target.name;
  }
}

TEST(Targets, EnvironmentForcesOne) {
  const ForcedTarget forced("scalar");
  EXPECT_STREQ(active_target().value()->name, "scalar");
}

TEST(Targets, UnknownForcedOneIsAnError) {
  const ForcedTarget forced("mmx");
  EXPECT_EQ(active_target().error(), Errc::kUnsupported);
}

TEST(CpuInfo, NamesTheMachine) {
  EXPECT_NE(cpu_info().model[0], '\0');
  EXPECT_GE(cpu_info().num_cpus, 1);
  EXPECT_GE(cpu_info().num_numa_nodes, 1);
}

}  // namespace
}  // namespace pagedkv
