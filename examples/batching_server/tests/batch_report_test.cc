// What a batch did to the pool, as told by the report: it must agree with the pool itself.
#include "app/batch_report.h"

#include <gmock/gmock.h>

#include <fstream>
#include <sstream>

#include "tests/engine_fixture.h"
#include "tests/test_files.h"

namespace serving {
namespace {

using testing::Harness;
using ::testing::HasSubstr;
using testing::TempFolder;

class BatchReportTest : public ::testing::Test {
 protected:
  // Four prompts with one beginning in a pool that does not hold them all at once.
  void run(BatchReport& report, Harness& harness) {
    for (Token last = 0; last < 4; ++last) {
      Request request;
      request.prompt.assign(20, 7);
      request.prompt.push_back(last);
      request.max_tokens = 20;
      report.prompts.push_back({.prompt = "</script> " + std::to_string(last), .prompt_tokens = 21});
      const std::size_t index = report.prompts.size() - 1;
      ASSERT_EQ(harness.engine().submit(
                    request,
                    [&report, index](const Event& event) {
                      report.hear(index, event);
                      return true;
                    },
                    &report.prompts.back().request),
                SubmitError::kNone);
    }
    while (harness.engine().step()) report.look();
    report.look();
  }
  static nlohmann::json data_of(const std::string& path) {
    std::stringstream page;
    page << std::ifstream(path).rdbuf();
    const std::string text = page.str(), begin = "type=\"application/json\">";
    const std::size_t from = text.find(begin) + begin.size();
    return nlohmann::json::parse(text.substr(from, text.find("</script>", from) - from));
  }

  Decoder decoder_{*random_weights(testing::tiny_config(), 5), WeightType::kF32};
  Harness harness_{decoder_, {.page_size = 8, .pages = 12}};
};

TEST_F(BatchReportTest, EveryLookAddsUpToThePool) {
  BatchReport report(harness_.engine(), harness_.cache(), "tiny", 64);
  run(report, harness_);
  const TempFolder folder;
  report.write_html(folder.file("batch.html"));
  const nlohmann::json data = data_of(folder.file("batch.html"));
  ASSERT_GT(data["looks"].size(), 20U);
  for (const auto& look : data["looks"]) {
    std::uint64_t held = 0, owned = 0;
    for (const auto& pages : look["held"]) held += pages.get<std::uint64_t>();
    for (const auto& owner : look["map"]) owned += owner != -1 && owner != -2;
    EXPECT_EQ(held, look["used"]);
    EXPECT_EQ(owned, look["used"]);
    EXPECT_EQ(look["map"].size(), 12U);
  }
  EXPECT_EQ(data["looks"].back()["used"], 0);
  EXPECT_EQ(data["output_tokens"], 80);
  EXPECT_EQ(data["reserved_at_once"], 1);  // 12 pages of 8 hold one context of 64.
  EXPECT_GT(data["most_at_once"], 1);
  EXPECT_EQ(data["prompts"][3]["prompt"], "</script> 3");  // Did not end the data.
  harness_.expect_no_page_held();
}

TEST_F(BatchReportTest, TableHasALineForEachPrompt) {
  BatchReport report(harness_.engine(), harness_.cache(), "tiny", 64);
  run(report, harness_);
  report.prompts[1].output = "two\nlines and more than fits into its column";
  report.prompts[3].prompt = "a beginning that many share, and an end of its own";
  const std::string table = report.table();
  EXPECT_THAT(table, HasSubstr("</script> 2"));
  EXPECT_THAT(table, HasSubstr("two lines and more than fits into..."));
  EXPECT_THAT(table, HasSubstr("...many share, and an end of its own"));
  EXPECT_THAT(table, HasSubstr("4 prompts, 80 tokens generated"));
}

TEST_F(BatchReportTest, FileThatCannotBeWrittenIsToldByName) {
  const BatchReport report(harness_.engine(), harness_.cache(), "tiny", 64);
  EXPECT_THROW(report.write_html("/nowhere/batch.html"), std::runtime_error);
}

}  // namespace
}  // namespace serving
