// Random scripts against the naive model of the whole cache, and those that once showed a fault.
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "model/cache_script.h"
#include "property/random_ops.h"

namespace pagedkv::testing {

void showValue(const CacheOp& op, std::ostream& out) { out << op << '\n'; }  // a line of a script
void showValue(const CacheCase& on, std::ostream& out) { out << on << '\n'; }

namespace {

rc::Gen<CacheOp> any_op() {
  const auto number = rc::gen::inRange<std::uint32_t>(0, 1U << 20);
  std::vector<std::pair<std::size_t, CacheOpKind>> kinds;
  const auto weights = op_weights();
  for (std::size_t i = 0; i < weights.size(); ++i) kinds.emplace_back(weights[i], static_cast<CacheOpKind>(i));
  const auto kind = rc::gen::map(rc::gen::inRange<std::size_t>(0, 110), [kinds](std::size_t at) {
    for (const auto& [weight, of] : kinds) {
      if (at < weight) return of;
      at -= weight;
    }
    return CacheOpKind::kWork;
  });
  return rc::gen::construct<CacheOp>(kind, number, number, number);
}

RC_GTEST_PROP(CacheModel, NoScriptTellsTheCacheFromTheModel, ()) {
  const auto seed = *rc::gen::arbitrary<std::uint64_t>();
  CacheScript script{random_script(seed, 0).on, {}};
  script.ops = *rc::gen::scale(4.0, rc::gen::container<std::vector<CacheOp>>(any_op()));
  const std::string difference = run_script(script);
  std::ostringstream text;
  text << difference << "\n" << script;
  if (!difference.empty()) RC_FAIL(text.str());
}

// The long run: PAGEDKV_RANDOM_OPS operations, each script on a new cache.
TEST(CacheModel, HoldsOverALongRandomRun) {
  constexpr std::uint64_t kOpsAScript = 500;
  std::mt19937_64 random = random_engine();
  const std::uint64_t num_ops = num_random_ops(200000);
  for (std::uint64_t done = 0; done < num_ops; done += kOpsAScript) {
    const CacheScript script = random_script(random(), kOpsAScript);
    const std::string difference = run_script(script);
    if (difference.empty()) continue;
    std::ostringstream text;
    text << shrink_script(script);
    FAIL() << difference << "\n" << text.str();
  }
}

TEST(CacheModel, ScriptsOfOldFaultsRunClean) {
  int num_scripts = 0;
  for (const auto& entry : std::filesystem::directory_iterator(PAGEDKV_SCRIPT_DIR)) {
    std::ifstream file(entry.path());
    EXPECT_EQ(run_script(parse_script(file)), "") << entry.path();
    ++num_scripts;
  }
  EXPECT_GT(num_scripts, 0);
}

TEST(CacheModel, AScriptIsReadAsItWasWritten) {
  const CacheScript script = random_script(7, 40);
  std::stringstream text, again;
  text << script;
  again << parse_script(text);
  EXPECT_EQ(text.str(), again.str());
}

}  // namespace
}  // namespace pagedkv::testing
