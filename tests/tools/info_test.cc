// `pagedkv info`: what it reports agrees with the library, and a target that cannot be forced is an error.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "pagedkv/cpu.h"
#include "pagedkv/version.h"
#include "run_tool.h"

namespace pagedkv::tool {
namespace {

using ::testing::HasSubstr;

/// Sets PAGEDKV_TARGET for one test, and puts back what was there.
class ForcedTarget {
 public:
  explicit ForcedTarget(const char* name) {
    if (const char* before = std::getenv("PAGEDKV_TARGET")) before_ = before;
    if (name == nullptr) {
      unsetenv("PAGEDKV_TARGET");
    } else {
      setenv("PAGEDKV_TARGET", name, 1);
    }
  }
  ~ForcedTarget() {
    if (before_.empty()) {
      unsetenv("PAGEDKV_TARGET");
    } else {
      setenv("PAGEDKV_TARGET", before_.c_str(), 1);
    }
  }
  ForcedTarget(const ForcedTarget&) = delete;
  ForcedTarget& operator=(const ForcedTarget&) = delete;

 private:
  std::string before_;
};

TEST(Info, NamesVersionAndEveryTarget) {
  const ForcedTarget none(nullptr);
  const ToolRun run = run_captured({"info"});
  EXPECT_EQ(run.code, kDone);
  EXPECT_THAT(run.out, HasSubstr(version()));
  for (const TargetInfo& target : targets()) EXPECT_THAT(run.out, HasSubstr(target.name));
}

TEST(Info, JsonMarksExactlyOneTargetActive) {
  const ForcedTarget none(nullptr);
  const ToolRun run = run_captured({"info", "--json", "-"});
  ASSERT_EQ(run.code, kDone);
  const auto json = nlohmann::json::parse(run.out);
  EXPECT_EQ(json["version"], version());
  EXPECT_EQ(json["targets"].size(), targets().size());
  EXPECT_TRUE(json["forced_target"].is_null());
  EXPECT_GT(json["memory_bytes"], 0);
  const auto active = std::count_if(json["targets"].begin(), json["targets"].end(),
                                    [](const nlohmann::json& target) { return target["active"].get<bool>(); });
  EXPECT_EQ(active, 1);
}

TEST(Info, SaysWhichTargetTheEnvironmentForces) {
  const ForcedTarget scalar("scalar");
  const ToolRun run = run_captured({"info", "--json", "-"});
  ASSERT_EQ(run.code, kDone) << run.err;
  const auto json = nlohmann::json::parse(run.out);
  EXPECT_EQ(json["active_target"], "scalar");
  EXPECT_EQ(json["forced_target"], "scalar");
  EXPECT_THAT(run_captured({"info"}).out, HasSubstr("forced by PAGEDKV_TARGET"));
}

TEST(Info, ForcedTargetThatDoesNotExistIsBadInput) {
  const ForcedTarget nonsense("vax");
  expect_bad_input(run_captured({"info"}), "PAGEDKV_TARGET");
}

TEST(Info, JsonPathThatCannotBeWrittenIsBadInput) {
  const ForcedTarget none(nullptr);
  EXPECT_EQ(run_captured({"info", "--json", "/nonexistent/folder/info.json"}).code, kBadInput);
}

}  // namespace
}  // namespace pagedkv::tool
