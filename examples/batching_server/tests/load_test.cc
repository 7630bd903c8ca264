// Traces: real formats, scaled so that what was shared stays shared; and files that are not traces.
#include <gtest/gtest.h>
#include <httplib.h>

#include <algorithm>
#include <thread>

#include "load/stream_client.h"
#include "load/trace.h"
#include "tests/test_files.h"

namespace serving::load {
namespace {

using serving::testing::TempFolder;

TEST(Trace, MooncakePromptsShareWhatTheirHashesShare) {
  const TempFolder folder;
  const auto path =
      folder.write("t.jsonl",
                   "{\"timestamp\":3000,\"input_length\":1500,\"output_length\":80,\"hash_ids\":[0,1,2]}\n"
                   "{\"timestamp\":0,\"input_length\":1100,\"output_length\":8,\"hash_ids\":[0,1,9]}\n");
  const auto trace = read_trace(path, {.prompt_scale = 1.0 / 64, .output_scale = 1.0 / 8});
  ASSERT_EQ(trace.size(), 2U);
  EXPECT_EQ(trace[0].arrival, 0);  // Sorted by time.
  EXPECT_EQ(trace[1].arrival, 3);
  EXPECT_EQ(trace[0].prompt.size(), 17U);  // 1100 / 64
  EXPECT_EQ(trace[1].prompt.size(), 23U);
  EXPECT_EQ(trace[1].output_tokens, 10U);
  const auto differ = std::ranges::mismatch(trace[0].prompt, trace[1].prompt).in1 - trace[0].prompt.begin();
  EXPECT_EQ(differ, 16);  // Two blocks of 512 / 64 tokens.
}

TEST(Trace, AzureLinesAndTheirLineEnds) {
  const TempFolder folder;
  const auto path = folder.write("t.csv",
                                 "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
                                 "2023-11-16 18:15:46.6805900,640,80\r\n2023-11-16 18:16:16.6805900,6400,8");
  const auto trace = read_trace(path, {.prompt_scale = 0.1, .output_scale = 0.5, .max_prompt = 300});
  ASSERT_EQ(trace.size(), 2U);
  EXPECT_NEAR(trace[1].arrival, 30, 1e-6);
  EXPECT_EQ(trace[0].prompt.size(), 64U);
  EXPECT_EQ(trace[1].prompt.size(), 300U);
  EXPECT_EQ(trace[0].output_tokens, 40U);
}

TEST(Trace, RefusesWhatIsNone) {
  const TempFolder folder;
  EXPECT_THROW(read_trace(folder.file("missing.csv"), {}), std::runtime_error);
  for (const char* text : {"", "{", "[1]\n", "{\"timestamp\":0}\n", "{\"timestamp\":\"x\",\"input_length\":1}\n",
                           "{\"timestamp\":0,\"input_length\":9,\"output_length\":1,\"hash_ids\":[1e107]}\n"}) {
    EXPECT_THROW(read_trace(folder.write("t.jsonl", text), {}), std::runtime_error) << text;
  }
  for (const char* line :
       {"nonsense", "2023-11-16 18:15:46.68,nan,1", "2023-11-16 18:15:46.68,1,inf", "2023-11-16 18:15:inf,1,1",
        "2023-11-16 999999999:15:46.68,1,1", "2023-11-16 18:15:46.68,-1,1"}) {
    const std::string text = std::string("a,b,c\n") + line + "\n";
    EXPECT_THROW(read_trace(folder.write("t.csv", text), {}), std::runtime_error) << line;
  }
}

TEST(StreamClient, AnswerInEventsOfAnotherShapeIsLostAndNoEndOfTheProgram) {
  std::string events;
  httplib::Server server;
  server.Post("/v1/completions", [&](const httplib::Request&, httplib::Response& response) {
    response.set_content(events, "text/event-stream");
  });
  const int port = server.bind_to_any_port("127.0.0.1");
  std::thread listener([&] { server.listen_after_bind(); });
  const auto is_complete = [&](const std::string& odd) {
    events = odd + R"(data: {"choices":[{"text":"a","finish_reason":"length"}]})" + "\n\ndata: [DONE]\n\n";
    return stream_completion("http://127.0.0.1:" + std::to_string(port), "m", {}).is_complete;
  };
  EXPECT_TRUE(is_complete(""));
  for (const char* odd :
       {"5", "[1]", R"({"choices":[7]})", R"({"choices":"x"})", R"({"usage":{"completion_tokens":"many"}})"}) {
    EXPECT_FALSE(is_complete(std::string("data: ") + odd + "\n\n")) << odd;
  }
  server.stop();
  listener.join();
}

TEST(Trace, SyntheticRequestsAreTheSameEachTimeAndWithinTheirLimits) {
  const TraceScale scale{.max_prompt = 100, .max_output = 20};
  const auto a = synthetic_trace(200, 10, scale), b = synthetic_trace(200, 10, scale);
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].prompt, b[i].prompt);
    EXPECT_LE(a[i].prompt.size(), 100U);
    EXPECT_LE(a[i].output_tokens, 20U);
  }
  EXPECT_NEAR(a.back().arrival, 20, 6);
}

}  // namespace
}  // namespace serving::load
