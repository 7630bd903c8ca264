// The frame of the program: exit codes, one line on stderr, tables.
#include "tool.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdio_ext.h>
#include <unistd.h>

#include <algorithm>

#include "json_file.h"
#include "pagedkv/version.h"
#include "run_tool.h"
#include "table.h"

namespace pagedkv::tool {
namespace {

using ::testing::HasSubstr;

TEST(Tool, UnknownCommandIsBadUsageSaidInOneLine) {
  for (const ToolRun& ran : {run_captured({"frobnicate"}), run_captured({}), run_captured({"--no-such-flag"})}) {
    EXPECT_EQ(ran.code, kBadInput);
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
    EXPECT_THAT(ran.err, HasSubstr("pagedkv: "));
  }
}

TEST(Tool, HelpAndVersionSucceedOnStdout) {
  const ToolRun help = run_captured({"--help"});
  EXPECT_EQ(help.code, kDone);
  EXPECT_THAT(help.out, HasSubstr("Exit codes"));
  EXPECT_EQ(help.err, "");
  EXPECT_THAT(run_captured({"--version"}).out, HasSubstr("pagedkv "));
}

TEST(Tool, OutputThatCannotBeWrittenIsAnError) {
  const int full = open("/dev/full", O_WRONLY);
  if (full < 0) GTEST_SKIP() << "no /dev/full";
  for (const char* command : {"--help", "info"}) {
    std::fflush(stdout);
    const int before = dup(STDOUT_FILENO);
    dup2(full, STDOUT_FILENO);
    const char* const argv[] = {"pagedkv", command};
    const int code = run_tool(2, argv);
    __fpurge(stdout);
    std::clearerr(stdout);
    dup2(before, STDOUT_FILENO);
    close(before);
    EXPECT_EQ(code, kBadInput) << command;
  }
  close(full);
}

TEST(JsonFile, BytesThatAreNoUtf8AreReplaced) {
  const TemporaryFolder folder;
  write_json(folder / "report.json", {{"source", "\xff.jsonl"}});
  const nlohmann::json json = read_json(folder / "report.json");
  EXPECT_EQ(json["source"], "\xEF\xBF\xBD.jsonl");
  EXPECT_EQ(json["version"], version());
}

TEST(Table, AlignsColumnsAndCountsUtf8AsOneColumn) {
  Table table({"name", "value"});
  table.add({"µs", "1"});
  table.add({"longer", "22"});
  EXPECT_EQ(table.to_string(), "name    value\n-------------\nµs          1\nlonger     22\n");
}

TEST(Table, FormatsNumbersForPeople) {
  EXPECT_EQ(with_thousands(0), "0");
  EXPECT_EQ(with_thousands(999), "999");
  EXPECT_EQ(with_thousands(1234567), "1,234,567");
  EXPECT_EQ(with_bytes(1536), "1.50 KiB");
  EXPECT_EQ(with_percent(0.1234), "12.34 %");
}

}  // namespace
}  // namespace pagedkv::tool
