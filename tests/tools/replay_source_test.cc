// Traces and generators: what they yield, and what they say about files that are wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <lzma.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "replay/line_reader.h"
#include "replay/request_tokens.h"
#include "replay/trace.h"
#include "replay/workload.h"
#include "run_tool.h"
#include "tool.h"

namespace pagedkv::tool {
namespace {

using ::testing::HasSubstr;

/// A file that lives as long as the test.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& content)
      : path_(testing::TempDir() + "pagedkv_" + testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::FILE* file = std::fopen(path_.c_str(), "wb");
    std::fwrite(content.data(), 1, content.size(), file);
    std::fclose(file);
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string compress(const std::string& text) {
  std::string packed(text.size() + 4096, '\0');
  std::size_t size = 0;
  const lzma_ret status =
      lzma_easy_buffer_encode(6, LZMA_CHECK_CRC64, nullptr, reinterpret_cast<const std::uint8_t*>(text.data()),
                              text.size(), reinterpret_cast<std::uint8_t*>(packed.data()), &size, packed.size());
  EXPECT_EQ(status, LZMA_OK);
  packed.resize(size);
  return packed;
}

std::vector<Session> read_all(const std::string& content, TraceFormat format) {
  const TemporaryFile file(content);
  const auto source = open_trace(file.path(), format, 60);
  std::vector<Session> sessions;
  for (Session session; source->next(session);) sessions.push_back(session);
  return sessions;
}

/// The complaint about a trace, or "" if there is none.
std::string complaint(const std::string& content, TraceFormat format) {
  try {
    read_all(content, format);
    return "";
  } catch (const BadInput& error) {
    return error.what();
  }
}

constexpr const char* kMooncake =
    "{\"timestamp\": 0, \"input_length\": 1030, \"output_length\": 5, \"hash_ids\": [0, 1, 7]}\n"
    "{\"timestamp\": 3000, \"input_length\": 512, \"output_length\": 2, \"hash_ids\": [0]}\n";
constexpr const char* kAzure =
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 23:59:59.5000000,374,44\r\n2023-11-17 00:00:01.0,1,2";
constexpr const char* kAgentic =
    "{\"id\":\"a\",\"block\":4,\"req\":[{\"t\":0,\"s\":0,\"in\":9,\"out\":3,\"api\":1,\"think\":null,\"h\":[5,1,9,1]},"
    "{\"t\":2.5,\"s\":1,\"in\":3,\"out\":1,\"h\":[]}]}\n"
    "{\"id\":\"b\",\"block\":4,\"req\":[{\"t\":0,\"s\":0,\"in\":4,\"out\":1,\"h\":[5,1]}]}\n";

TEST(Trace, MooncakeYieldsRequestsWithRunsOfBlocks) {
  const std::vector<Session> sessions = read_all(kMooncake, TraceFormat::kMooncake);
  ASSERT_EQ(sessions.size(), 2u);
  EXPECT_EQ(sessions[1].start_s, 3.0);
  EXPECT_EQ(sessions[0].block_tokens, 512u);
  const Turn& turn = sessions[0].turns.at(0);
  EXPECT_EQ(turn.prompt_tokens, 1030u);
  EXPECT_EQ(turn.output_tokens, 5u);
  ASSERT_EQ(turn.blocks.size(), 2u);
  EXPECT_EQ(turn.blocks[0].count, 2u);
  EXPECT_EQ(turn.blocks[1].first, 7u);
}

TEST(Trace, AzureYieldsSecondsFromTheFirstRequestAcrossMidnight) {
  const std::vector<Session> sessions = read_all(kAzure, TraceFormat::kAzure);
  ASSERT_EQ(sessions.size(), 2u);
  EXPECT_EQ(sessions[0].start_s, 0);
  EXPECT_NEAR(sessions[1].start_s, 1.5, 1e-6);
  EXPECT_EQ(sessions[0].turns.at(0).prompt_tokens, 374u);
  EXPECT_EQ(sessions[1].turns.at(0).output_tokens, 2u);
}

TEST(Trace, AzureTimesMayNameTheirOffsetFromUtc) {
  const std::vector<Session> sessions = read_all(
      "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n"
      "2024-05-10 00:00:01.009930Z,1,2\n2024-05-10 02:00:02+02:00,1,2\n2024-05-09 18:30:03-05:30,1,2\n",
      TraceFormat::kAzure);
  ASSERT_EQ(sessions.size(), 4u);
  EXPECT_EQ(sessions[0].turns.at(0).prompt_tokens, 2162u);
  EXPECT_NEAR(sessions[1].start_s, 1, 1e-6);
  EXPECT_NEAR(sessions[2].start_s, 1.99007, 1e-6);
  EXPECT_NEAR(sessions[3].start_s, 2.99007, 1e-6);
}

TEST(Trace, AgenticKeepsIdsOfSessionsApart) {
  const std::vector<Session> sessions = read_all(kAgentic, TraceFormat::kAgentic);
  ASSERT_EQ(sessions.size(), 2u);
  ASSERT_EQ(sessions[0].turns.size(), 2u);
  EXPECT_EQ(sessions[1].start_s, 60);
  EXPECT_EQ(sessions[0].turns[1].offset_s, 2.5);
  EXPECT_EQ(sessions[0].turns[0].known_tokens, 8u);
  EXPECT_NE(sessions[0].turns[0].blocks[0].first, sessions[1].turns[0].blocks[0].first);
}

TEST(Trace, CompressedFileReadsAsThePlainOne) {
  const std::vector<Session> sessions = read_all(compress(kMooncake), TraceFormat::kMooncake);
  ASSERT_EQ(sessions.size(), 2u);
  EXPECT_EQ(sessions[1].turns.at(0).prompt_tokens, 512u);
}

TEST(Trace, MalformedLineIsReportedWithItsNumber) {
  const std::string good = "{\"timestamp\": 0, \"input_length\": 3, \"output_length\": 5, \"hash_ids\": [0]}\n";
  const auto mooncake = [&](const std::string& line) { return complaint(good + line, TraceFormat::kMooncake); };
  for (const std::string& line : std::vector<std::string>{
           "{\"timestamp\": 1, \"input_le", "[1]\n", "{}\n",
           R"({"timestamp": 1, "input_length": -3, "output_length": 5, "hash_ids": [0]})",
           R"({"timestamp": 1, "input_length": 3.5, "output_length": 5, "hash_ids": [0]})",
           R"({"timestamp": 1, "input_length": 1e30, "output_length": 5, "hash_ids": [0]})",
           R"({"timestamp": 1, "input_length": 3, "output_length": 18446744073709551617, "hash_ids": [0]})",
           R"({"timestamp": 1, "input_length": 4000000000, "output_length": 5, "hash_ids": [0]})",
           R"({"timestamp": "now", "input_length": 3, "output_length": 5, "hash_ids": [0]})",
           R"({"timestamp": -1, "input_length": 3, "output_length": 5, "hash_ids": [0]})",
           R"({"timestamp": 1, "input_length": 3, "output_length": 5, "hash_ids": []})",
           R"({"timestamp": 1, "input_length": 3, "output_length": 5, "hash_ids": [-1]})",
           R"({"timestamp": 1, "input_length": 3, "output_length": 5, "hash_ids": {}})"}) {
    EXPECT_THAT(mooncake(line), HasSubstr(":2: ")) << line;
  }
  EXPECT_EQ(mooncake(good), "");
  EXPECT_EQ(mooncake("\n\r\n"), "");
  EXPECT_THAT(mooncake("\n" + good), HasSubstr(":3: a blank line"));
}

TEST(Trace, AzureComplainsAboutHeaderFieldsAndOrder) {
  const auto azure = [](const std::string& text) { return complaint(text, TraceFormat::kAzure); };
  EXPECT_THAT(azure(""), HasSubstr("header"));
  EXPECT_THAT(azure("a,b,c\n"), HasSubstr(":1: "));
  const std::string header = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  for (const std::string& line : std::vector<std::string>{
           "2023-11-16 18:15:46.68,374", "2023-11-16 18:15:46.68,374,", "2023-11-16 18:15:46.68,-1,4",
           "2023-11-16 18:15:46.68,99999999999,4", "2023-11-16 18:15:46.68,3,4,5", "2023-13-16 18:15:46.68,3,4",
           "2023-02-30 18:15:46.68,3,4", "2023-11-16 24:15:46.68,3,4", "2023-11-16 18:15:nan,3,4", "yesterday,3,4",
           "Z,3,4", "2023-11-16 18:15:46+24:00,3,4", "2023-11-16 18:15:46+0100,3,4", "2023-11-16+01:00,3,4"}) {
    EXPECT_THAT(azure(header + line), HasSubstr(":2: ")) << line;
  }
  EXPECT_THAT(azure(header + "2023-11-16 18:15:46,3,4\n2023-11-16 18:15:45,3,4\n"), HasSubstr(":3: "));
}

TEST(Trace, AgenticComplainsAboutRunsThatDoNotFitThePrompt) {
  for (const std::string& request : std::vector<std::string>{
           R"({"t":0,"in":9,"out":3,"h":[5,1]})", R"({"t":0,"in":9,"out":3,"h":[5]})",
           R"({"t":0,"in":9,"out":3,"h":[5,4000000000]})", R"({"t":0,"in":9,"out":3,"h":[5,-1,9,3]})",
           R"({"t":0,"in":9,"out":3,"h":[4294967295,2]})", "7"}) {
    const std::string line = R"({"block":4,"req":[)" + request + "]}";
    EXPECT_THAT(complaint(line, TraceFormat::kAgentic), HasSubstr(":1: ")) << line;
  }
  EXPECT_THAT(complaint(R"({"block":0,"req":[]})", TraceFormat::kAgentic), HasSubstr("block"));
  EXPECT_THAT(complaint(R"({"block":4,"req":[]})", TraceFormat::kAgentic), HasSubstr("req"));
}

TEST(LineReader, CutOrDamagedCompressionIsReportedWithALine) {
  std::string text;
  for (int i = 0; i < 100000; ++i) text += std::to_string(i * 7919 % 104729) + "\n";
  const std::string packed = compress(text);
  std::string damaged = packed;
  damaged[packed.size() / 2] = static_cast<char>(damaged[packed.size() / 2] ^ 0x55);
  for (const std::string& content : {packed.substr(0, packed.size() / 2), packed.substr(0, 9), damaged}) {
    const TemporaryFile file(content);
    LineReader reader(file.path());
    const auto drain = [&] {
      for (std::string_view line; reader.next(line);) {
      }
    };
    EXPECT_THROW(drain(), BadInput);
  }
}

TEST(LineReader, GivesLinesOfAnyLengthWithEitherEnd) {
  const std::string long_line(700000, 'x');
  const TemporaryFile file("a\r\n\n" + long_line + "\nlast");
  LineReader reader(file.path());
  std::vector<std::string> lines;
  for (std::string_view line; reader.next(line);) lines.emplace_back(line);
  EXPECT_EQ(lines, (std::vector<std::string>{"a", "", long_line, "last"}));
}

TEST(LineReader, RefusesALineThatIsLongerThanAnyTraceHas) {
  const TemporaryFile file(std::string((17u << 20), 'x'));
  LineReader reader(file.path());
  std::string_view line;
  EXPECT_THROW(reader.next(line), BadInput);
}

TEST(Workload, SameSeedGivesTheSameRequestsAndAnotherSeedOthers) {
  const auto summary = [](std::uint64_t seed) {
    return summarize(*limit_requests(generate_workload(Workload::kChat, seed), 100)).prompt_tokens;
  };
  EXPECT_EQ(summary(1), summary(1));
  EXPECT_NE(summary(1), summary(2));
}

TEST(Workload, EveryTurnBeginsWithTheConversationBeforeIt) {
  for (const Workload workload : {Workload::kChat, Workload::kAgent}) {
    const auto source = generate_workload(workload, 7);
    Session session;
    while (source->next(session) && session.turns.size() < 3) {
    }
    std::vector<Token> before;
    for (const Turn& turn : session.turns) {
      std::vector<Token> tokens(turn.total_tokens());
      RequestTokens(Request{turn, session.block_tokens, 1, 0}).expand(0, tokens);
      ASSERT_LT(before.size(), tokens.size());
      EXPECT_TRUE(std::equal(before.begin(), before.end(), tokens.begin()));
      before = tokens;
    }
  }
}

TEST(RequestTokens, ExpandsAnyRangeAsAPartOfTheWhole) {
  Turn turn;
  turn.prompt_tokens = 20;
  turn.output_tokens = 10;
  turn.blocks = {{100, 2}, {7, 3}};
  turn.known_tokens = 18;
  const RequestTokens tokens(Request{turn, 4, 3, 0});
  std::vector<Token> whole(30);
  tokens.expand(0, whole);
  for (std::size_t begin = 0; begin < whole.size(); ++begin) {
    std::vector<Token> part(whole.size() - begin);
    tokens.expand(begin, part);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + static_cast<std::ptrdiff_t>(begin))) << begin;
  }
}

TEST(RequestTokens, EqualBlocksAreEqualAndOwnTokensDiffer) {
  Turn turn;
  turn.prompt_tokens = 12;
  turn.blocks = {{5, 2}};
  turn.known_tokens = 8;
  std::vector<Token> a(12), b(12);
  RequestTokens(Request{turn, 4, 1, 0}).expand(0, a);
  RequestTokens(Request{turn, 4, 2, 0}).expand(0, b);
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 8, b.begin()));
  EXPECT_NE(a[8], b[8]);
  EXPECT_TRUE(std::all_of(a.begin(), a.end(), [](Token token) { return token >= 0; }));
}

TEST(Replay, ATraceFromAPipeIsRefusedBeforeItIsRead) {
  const TemporaryFolder folder;
  const std::string pipe = folder / "trace.jsonl";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  expect_bad_input(run_captured({"replay", "--trace", pipe, "--format", "mooncake"}), "not a pipe");
}

TEST(Replay, OptionsWithoutEffectAreRefused) {
  const TemporaryFile trace("{\"timestamp\": 0, \"input_length\": 3, \"output_length\": 5, \"hash_ids\": [0]}\n");
  const auto run = [&](const std::string& format, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "replay");
    if (!format.empty()) arguments.insert(arguments.end(), {"--trace", trace.path(), "--format", format});
    return run_captured(arguments);
  };
  expect_bad_input(run("", {"--session-gap", "5"}), "--session-gap");
  expect_bad_input(run("mooncake", {"--session-gap", "5"}), "--session-gap");
  expect_bad_input(run("mooncake", {"--seed", "5"}), "--seed");
  expect_bad_input(run("azure", {"--prefix-cache"}), "--prefix-cache");
  expect_bad_input(run("mooncake", {"--prefix-cache", "--policy", "glibc"}), "--prefix-cache");
  expect_bad_input(run("mooncake", {"--max-seq-len", "50"}), "--max-seq-len");
  expect_bad_input(run("mooncake", {"--slot-bytes", "64", "--attention"}), "--slot-bytes");
  expect_bad_input(run("mooncake", {"--slot-bytes", "64", "--prefix-cache"}), "--slot-bytes");
  EXPECT_EQ(run("mooncake", {"--max-seq-len", "50", "--policy", "all"}).code, kDone);
}

TEST(Replay, BadInputIsSaidInOneLineAndExitsWithTwo) {
  const TemporaryFile broken("{\"timestamp\": 0\n");
  const TemporaryFile empty("");
  const std::vector<std::vector<std::string>> bad = {
      {"replay", "--trace", "/nonexistent", "--format", "azure"},
      {"replay", "--trace", broken.path()},
      {"replay", "--trace", broken.path(), "--format", "mooncake"},
      {"replay", "--trace", broken.path(), "--format", "csv"},
      {"replay", "--workload", "poem"},
      {"replay", "--policy", "buddies"},
      {"replay", "--page-size", "0"},
      {"replay", "--page-size", "257"},
      {"replay", "--capacity-tokens", "0"},
      {"replay", "--capacity-tokens", "-5"},
      {"replay", "--capacity-tokens", "1e30"},
      {"replay", "--capacity-tokens", "8"},  // not one page
      {"replay", "--capacity-tokens", "1099511627776", "--page-size", "1"},
      {"replay", "--step-ms", "nan"},
      {"replay", "--trace", "/dev/null", "--format", "azure"},
      {"replay", "--max-requests", "10", "--json", "/nonexistent/report.json"},
  };
  for (const auto& arguments : bad) {
    const ToolRun ran = run_captured(arguments);
    EXPECT_EQ(ran.code, kBadInput) << testing::PrintToString(arguments);
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  }
}

}  // namespace
}  // namespace pagedkv::tool
