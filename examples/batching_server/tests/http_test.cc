// The HTTP server over a random model: every endpoint, every refusal, clients that vanish, and not a page lost.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <httplib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <sstream>
#include <thread>

#include "http/http_server.h"
#include "tests/engine_fixture.h"
#include "tests/test_files.h"

namespace serving {
namespace {

using testing::Harness;
using testing::HarnessOptions;
using ::testing::HasSubstr;

constexpr const char* kJson = "application/json";

class HttpTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    tokenizer_ = byte_tokenizer();
    ModelConfig config = testing::tiny_config();
    config.max_positions = 8192;
    decoder_ = std::make_unique<Decoder>(*random_weights(config, 5), WeightType::kF32);
  }
  static void TearDownTestSuite() {
    decoder_.reset();
    tokenizer_.reset();
  }

  void start(const HarnessOptions& options = {.page_size = 16, .pages = 2048}, HttpOptions http = {}) {
    http.port = 0;
    harness_ = std::make_unique<Harness>(*decoder_, options);
    harness_->engine().start();
    server_ = std::make_unique<HttpServer>(
        harness_->engine(), harness_->cache(), *tokenizer_,
        ApiLimits{
            .model_name = "tiny", .max_positions = 8192, .pool_pages = options.pages, .page_size = options.page_size},
        http);
    port_ = server_->start();
  }
  void TearDown() override {
    if (!server_) return;
    server_->shutdown(30);
    harness_->expect_no_page_held();
    server_.reset();
    harness_.reset();
  }

  [[nodiscard]] httplib::Client client() const {
    httplib::Client client("127.0.0.1", port_);
    client.set_read_timeout(60);
    return client;
  }
  Json post(const std::string& path, const std::string& body, int expected_status) {
    const auto response = client().Post(path, body, kJson);
    EXPECT_TRUE(response) << to_string(response.error());
    if (!response) return {};
    EXPECT_EQ(response->status, expected_status) << body.substr(0, 200) << " -> " << response->body;
    return Json::parse(response->body, nullptr, false);
  }
  Json complete(Json body, int expected_status = 200) {
    if (!body.contains("model")) body["model"] = "tiny";
    return post("/v1/completions", body.dump(), expected_status);
  }
  double metric(const std::string& name) {
    const auto response = client().Get("/metrics");
    if (!response) return -1;
    const std::size_t at = response->body.find("\n" + name + " ");
    return at == std::string::npos ? -1 : std::stod(response->body.substr(at + name.size() + 2));
  }
  // Waits for a condition that another thread brings about.
  template <class F>
  void eventually(const F& holds) {
    for (int i = 0; i < 3000; ++i) {
      if (holds()) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ADD_FAILURE() << "did not happen within 30 s";
  }
  // A client has its answer before the engine ends the step that made it, and the metrics are those of ended steps.
  void everything_is_given_back() {
    eventually([&] { return metric("pagedkv_pages_used") == 0 && metric("pagedkv_requests_open") == 0; });
  }

  /// A raw connection that sends `text` and then whatever the test wants.
  [[nodiscard]] int connect_and_send(const std::string& text) const {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port_));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::send(fd, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
    return fd;
  }
  /// All that the server says to `text` before it closes.
  [[nodiscard]] std::string answer_to(const std::string& text) const {
    const int fd = connect_and_send(text);
    std::string answer;
    std::array<char, 4096> buffer{};
    for (ssize_t n = 0; (n = ::recv(fd, buffer.data(), buffer.size(), 0)) > 0;) {
      answer.append(buffer.data(), static_cast<std::size_t>(n));
    }
    ::close(fd);
    return answer;
  }
  static std::string raw_post(const std::string& body) {
    return "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: " +
           std::to_string(body.size()) + "\r\n\r\n" + body;
  }

  static std::unique_ptr<Tokenizer> tokenizer_;
  static std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<Harness> harness_;
  std::unique_ptr<HttpServer> server_;
  int port_ = 0;
};
std::unique_ptr<Tokenizer> HttpTest::tokenizer_;
std::unique_ptr<Decoder> HttpTest::decoder_;

TEST_F(HttpTest, CompletionHasOpenAisShape) {
  start();
  const Json answer = complete({{"prompt", "hello"}, {"max_tokens", 5}, {"temperature", 0}});
  EXPECT_EQ(answer["object"], "text_completion");
  EXPECT_THAT(answer["id"].get<std::string>(), ::testing::StartsWith("cmpl-"));
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 6);
  EXPECT_EQ(answer["usage"]["completion_tokens"], 5);
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "length");
}

TEST_F(HttpTest, EchoPutsThePromptFirst) {
  start();
  const Json answer = complete({{"prompt", "hello"}, {"max_tokens", 2}, {"echo", true}});
  EXPECT_THAT(answer["choices"][0]["text"].get<std::string>(), ::testing::StartsWith("hello"));
}

TEST_F(HttpTest, TextOffsetsCountCharactersFromTheBeginningOfTheText) {
  start();
  Json body = {{"model", "tiny"}, {"max_tokens", 40}, {"echo", true},       {"logprobs", 0},
               {"seed", 1},       {"temperature", 2}, {"ignore_eos", true}, {"prompt", "h\xC3\xA9llo"}};
  const auto offsets = complete(body)["choices"][0]["logprobs"]["text_offset"].get<std::vector<std::size_t>>();
  ASSERT_EQ(offsets.size(), 40U);
  EXPECT_EQ(offsets[0], 5U);  // Of 6 bytes.
  EXPECT_GT(offsets[39], 5U);
  EXPECT_LE(offsets[39], 5U + 39U);  // A byte a token, and some of them are no character of their own.
  EXPECT_TRUE(std::ranges::is_sorted(offsets));

  body["stream"] = true;
  const std::string events = client().Post("/v1/completions", body.dump(), kJson)->body;
  std::vector<std::size_t> streamed;
  for (std::size_t at = 0; (at = events.find("data: {", at)) != std::string::npos; ++at) {
    const Json event = Json::parse(events.substr(at + 6, events.find('\n', at) - at - 6));
    const Json& logprobs = event["choices"][0]["logprobs"];
    if (logprobs.is_null()) continue;
    for (const Json& offset : logprobs["text_offset"]) streamed.push_back(offset.get<std::size_t>());
  }
  EXPECT_EQ(streamed, offsets);
}

TEST_F(HttpTest, BeamSearchRefusesLogprobsInsteadOfInventingThem) {
  start();
  EXPECT_EQ(complete({{"prompt", "a"}, {"use_beam_search", true}, {"logprobs", 1}}, 400)["error"]["param"], "logprobs");
}

TEST_F(HttpTest, AnyBytesThatAModelSaysBecomeValidJson) {
  start();
  const Json answer = complete({{"prompt", "x"}, {"max_tokens", 300}, {"temperature", 2}, {"ignore_eos", true}});
  EXPECT_FALSE(answer.is_discarded());
  EXPECT_EQ(answer["usage"]["completion_tokens"], 300);
}

TEST_F(HttpTest, StreamsAreNotCompressedSinceThatWouldHoldThemBack) {
  start();
  const Json body = {{"model", "tiny"}, {"prompt", "a"}, {"max_tokens", 3}, {"stream", true}};
  const auto response = client().Post("/v1/completions", {{"Accept-Encoding", "gzip, br"}}, body.dump(), kJson);
  EXPECT_EQ(response->get_header_value("Content-Type"), "text/event-stream");
  EXPECT_FALSE(response->has_header("Content-Encoding"));
}

TEST_F(HttpTest, ListsItsModel) {
  start();
  EXPECT_EQ(Json::parse(client().Get("/v1/models")->body)["data"][0]["id"], "tiny");
  EXPECT_EQ(client().Get("/v1/models/tiny")->status, 200);
  EXPECT_EQ(client().Get("/v1/models/other")->status, 404);
}

TEST_F(HttpTest, PoolPageAndItsNumbers) {
  start();
  const auto page = client().Get("/");
  EXPECT_THAT(page->get_header_value("Content-Type"), HasSubstr("text/html"));
  EXPECT_THAT(page->body, HasSubstr("<canvas id=\"map\""));
  complete({{"prompt", std::string(200, 'a')}, {"max_tokens", 2}});
  const Json pool = Json::parse(client().Get("/pool.json")->body);
  EXPECT_EQ(pool["capacity"], 2048);
  EXPECT_EQ(pool["used"].get<int>() + pool["evictable"].get<int>() + pool["free"].get<int>(), 2048);
  EXPECT_GT(pool["evictable"], 0);
  int evictable = 0;
  for (std::size_t i = 1; i < pool["evictable_pages"].size(); i += 2)
    evictable += pool["evictable_pages"][i].get<int>();
  EXPECT_EQ(evictable, pool["evictable"]);
}

TEST_F(HttpTest, MalformedBodiesAreRefusedInOpenAisShape) {
  start();
  const std::string deep(100'000, '[');
  const std::string lone_surrogate = R"({"model":"tiny","prompt":"\ud800"})";
  const std::string bad_utf8 = "{\"model\":\"tiny\",\"prompt\":\"\xC3\x28\"}";
  for (const std::string& body : {std::string(), std::string("{"), std::string("[]"), std::string("null"), deep,
                                  lone_surrogate, bad_utf8, std::string("{\"a\":1}{"), std::string(1, '\0')}) {
    for (const char* path : {"/v1/completions", "/v1/chat/completions"}) {
      const Json answer = post(path, body, 400);
      EXPECT_EQ(answer["error"]["type"], "invalid_request_error");
      EXPECT_TRUE(answer["error"]["message"].is_string());
    }
  }
}

TEST_F(HttpTest, MembersOutOfRangeAreRefusedByName) {
  start();
  const auto refused = [&](const char* key, const Json& value) {
    Json body = {{"prompt", "a"}};
    body[key] = value;
    EXPECT_EQ(complete(body, 400)["error"]["param"], key) << value;
  };
  refused("temperature", -1);
  refused("temperature", "hot");
  refused("top_p", 1.5);
  refused("n", 0);
  refused("n", 1e9);
  refused("n", 1.5);
  refused("max_tokens", 0);
  refused("max_tokens", -5);
  refused("seed", 1.5);
  refused("seed", UINT64_MAX);
  EXPECT_EQ(complete({{"prompt", "a"}, {"seed", 1.5}}, 400)["error"]["message"],
            "'seed' must be a number between -9223372036854775808 and 9223372036854775807.");
  refused("stop", Json::array({"a", "b", "c", "d", "e"}));
  refused("stop", std::string(1000, 'x'));
  refused("stream", "yes");
  refused("logprobs", 1000);
  refused("logit_bias", {{"x", 1}});
  refused("logit_bias", {{"5", 1000}});
  refused("presence_penalty", 3);
  refused("prompt", Json::array());
  refused("prompt", 7);
  refused("prompt", Json::array({-1}));
  refused("prompt", Json::array({1, 300}));
  refused("prompt", Json::array({Json::array()}));
  refused("best_of", 3);
  refused("cache_salt", std::string(300, 'x'));
  refused("suffix", "x");
  refused("draft_tokens", 1000);
}

TEST_F(HttpTest, ChatMessagesAreChecked) {
  start();
  for (const Json& messages : {Json(nullptr), Json("x"), Json::array(), Json::array({1}),
                               Json::array({{{"role", "user"}}}), Json::array({{{"role", "user"}, {"content", 5}}}),
                               Json::array({{{"role", "user"}, {"content", {{{"type", "image_url"}}}}}})}) {
    const Json answer = post("/v1/chat/completions", Json{{"model", "tiny"}, {"messages", messages}}.dump(), 400);
    EXPECT_EQ(answer["error"]["param"], "messages") << messages;
  }
  const Json parts = Json::array({{{"type", "text"}, {"text", "hi"}}});
  const Json answer = post(
      "/v1/chat/completions",
      Json{{"model", "tiny"}, {"messages", {{{"role", "user"}, {"content", parts}}}}, {"max_tokens", 3}}.dump(), 200);
  EXPECT_EQ(answer["choices"][0]["message"]["role"], "assistant");
}

TEST_F(HttpTest, StreamedChatBeginsWithItsRoleThoughTheFirstTokenIsHeldBack) {
  start();
  const Token a = tokenizer_->encode("a", SpecialText::kIsPlain).back();
  const Json body = {{"model", "tiny"},
                     {"messages", {{{"role", "user"}, {"content", "hi"}}}},
                     {"logit_bias", {{std::to_string(a), 100}}},
                     {"stop", "ab"},
                     {"max_tokens", 4},
                     {"stream", true}};
  const auto response = client().Post("/v1/chat/completions", body.dump(), kJson);
  ASSERT_EQ(response->status, 200) << response->body;
  std::vector<Json> deltas;
  std::istringstream events(response->body);
  for (std::string line; std::getline(events, line);) {
    const Json event = Json::parse(line.substr(std::min<std::size_t>(line.size(), 6)), nullptr, false);
    if (event.is_object()) deltas.push_back(event["choices"][0]["delta"]);
  }
  ASSERT_FALSE(deltas.empty());
  std::string text;
  for (std::size_t i = 0; i < deltas.size(); ++i) {
    EXPECT_EQ(deltas[i].contains("role"), i == 0) << deltas[i];
    text += deltas[i].value("content", "");
  }
  EXPECT_EQ(text, "aaaa");
}

TEST_F(HttpTest, UnknownModelPathAndMethod) {
  start();
  EXPECT_EQ(complete({{"model", "other"}, {"prompt", "a"}}, 404)["error"]["code"], "model_not_found");
  EXPECT_EQ(post("/v1/nothing", "{}", 404)["error"]["code"], "unknown_url");
  EXPECT_EQ(client().Get("/v1/completions")->status, 405);
}

TEST_F(HttpTest, PromptBeyondTheContextOrThePool) {
  start({.page_size = 16, .pages = 20});
  EXPECT_EQ(complete({{"prompt", std::string(9000, 'a')}}, 400)["error"]["code"], "context_length_exceeded");
  EXPECT_EQ(complete({{"prompt", std::string(400, 'a')}}, 400)["error"]["code"], "context_length_exceeded");
  complete({{"prompt", std::string(200, 'a')}});  // And the server goes on.
}

TEST_F(HttpTest, ChatWithoutALimitTakesWhatThePoolHasRoomFor) {
  start({.page_size = 16, .pages = 10});
  Json chat = {{"model", "tiny"}, {"messages", {{{"role", "user"}, {"content", "a"}}}}, {"ignore_eos", true}};
  const Json answer = post("/v1/chat/completions", chat.dump(), 200);
  EXPECT_EQ(answer["usage"]["total_tokens"], 160);
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "length");
  chat["use_beam_search"] = true;
  chat["best_of"] = 3;
  EXPECT_EQ(post("/v1/chat/completions", chat.dump(), 200)["usage"]["total_tokens"], 48);  // 3 of 10 pages a beam.
  chat["max_tokens"] = 100;
  EXPECT_EQ(post("/v1/chat/completions", chat.dump(), 400)["error"]["code"], "context_length_exceeded");
}

TEST_F(HttpTest, HugeBodyIsRefusedAndTheServerGoesOn) {
  start({.page_size = 16, .pages = 2048}, {.max_body_bytes = 10'000});
  EXPECT_EQ(post("/v1/completions", std::string(20'000, ' '), 413)["error"]["code"], "body_too_large");
  complete({{"prompt", "a"}});
}

TEST_F(HttpTest, BodyInChunksIsHeldToTheSameLimit) {
  start({.page_size = 16, .pages = 2048}, {.max_body_bytes = 10'000});
  const std::string piece(1'000, ' ');
  int sent = 0;
  const auto response = client().Post(
      "/v1/completions",
      [&](std::size_t, httplib::DataSink& sink) {
        if (++sent <= 20) return sink.write(piece.data(), piece.size());
        sink.done();
        return true;
      },
      kJson);
  ASSERT_TRUE(response) << to_string(response.error());
  EXPECT_EQ(response->status, 413);
  EXPECT_EQ(Json::parse(response->body)["error"]["code"], "body_too_large");
  complete({{"prompt", "a"}});
}

TEST_F(HttpTest, BodiesThatWouldBeInflatedOrTakenApartAreRefusedUnread) {
  start();
  for (const char* header :
       {"Content-Encoding: gzip", "Content-Encoding: br", "Content-Type: multipart/form-data; boundary=x"}) {
    // What stays unread is not taken for a request: there is one answer, and then the end.
    const std::string hidden = "GET /health HTTP/1.1\r\n\r\n";
    const std::string answer = answer_to(std::string("POST /v1/completions HTTP/1.1\r\n") + header +
                                         "\r\nContent-Length: " + std::to_string(hidden.size()) + "\r\n\r\n" + hidden);
    EXPECT_THAT(answer, ::testing::StartsWith("HTTP/1.1 415"));
    EXPECT_THAT(answer, HasSubstr("Connection: close"));
    EXPECT_THAT(answer, HasSubstr("unsupported_media_type"));
    EXPECT_EQ(answer.find("HTTP/1.1", 1), std::string::npos) << answer;
  }
}

TEST_F(HttpTest, BodyThatNobodyWantsEndsItsConnectionUnread) {
  start({.page_size = 16, .pages = 2048}, {.read_timeout_seconds = 3600});
  for (const char* request : {"POST /v1/nothing", "PUT /v1/completions", "DELETE /health", "GET /health"}) {
    const std::string answer =
        answer_to(std::string(request) + " HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    EXPECT_THAT(answer, HasSubstr("Connection: close")) << request;
    EXPECT_EQ(answer.find("HTTP/1.1", 1), std::string::npos) << answer;
  }
}

TEST_F(HttpTest, HeadersWithoutEndAreRefused) {
  start();
  std::string head = "GET /health HTTP/1.1\r\n";
  for (int i = 0; i < 100; ++i) head += "X-" + std::to_string(i) + ": " + std::string(1'000, 'x') + "\r\n";
  EXPECT_THAT(answer_to(head + "\r\n"), ::testing::StartsWith("HTTP/1.1 400"));
}

TEST_F(HttpTest, LongBodyNeedNotSayThatItIsJson) {
  start();
  const Json body = {{"model", "tiny"}, {"prompt", "a"}, {"max_tokens", 1}, {"user", std::string(20'000, 'u')}};
  const auto response = client().Post("/v1/completions", body.dump(), "application/x-www-form-urlencoded");  // As curl.
  EXPECT_EQ(response->status, 200) << response->body;
}

TEST_F(HttpTest, ShutdownDoesNotWaitForIdleConnections) {
  start({.page_size = 16, .pages = 2048}, {.read_timeout_seconds = 3600});
  auto idle = client();
  idle.set_keep_alive(true);
  EXPECT_EQ(idle.Get("/health")->status, 200);
  const int half = connect_and_send("POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{");
  server_->shutdown(0);  // Without end, if somebody waits for the two.
  ::close(half);
}

TEST_F(HttpTest, RequestsBeyondTheLimitAreToldToComeAgain) {
  HarnessOptions options{.page_size = 16, .pages = 2048};
  options.engine.max_requests = 1;
  start(options);
  const std::string endless =
      Json{{"model", "tiny"}, {"prompt", "a"}, {"max_tokens", 8000}, {"ignore_eos", true}, {"stream", true}}.dump();
  const int first = connect_and_send(raw_post(endless));
  eventually([&] { return metric("pagedkv_requests_open") == 1; });
  EXPECT_EQ(complete({{"prompt", "b"}}, 429)["error"]["type"], "rate_limit_exceeded");
  ::close(first);
  eventually([&] { return metric("pagedkv_requests_open") == 0; });
  complete({{"prompt", "b"}});
}

TEST_F(HttpTest, MorePromptsThanTheServerHoldsAreRefusedForGoodAndChoicesAreNoRequests) {
  HarnessOptions options{.page_size = 16, .pages = 2048};
  options.engine.max_requests = 2;
  start(options, {.max_prompts = 2});
  EXPECT_EQ(complete({{"prompt", {"a", "b", "c"}}}, 400)["error"]["param"], "prompt");
  EXPECT_EQ(complete({{"prompt", {"a", "b"}}, {"n", 8}, {"max_tokens", 2}})["choices"].size(), 16U);
}

TEST_F(HttpTest, VanishedClientsFreeTheirPages) {
  start();
  for (bool streamed : {true, false}) {
    const Json body = {{"model", "tiny"},    {"prompt", std::string(500, 'p')},
                       {"max_tokens", 7000}, {"ignore_eos", true},
                       {"stream", streamed}, {"n", 4}};
    const double before = metric("pagedkv_disconnects_total");
    const int gone = connect_and_send(raw_post(body.dump()));
    eventually([&] { return metric("pagedkv_pages_used") > 0; });
    ::close(gone);
    eventually([&] { return metric("pagedkv_disconnects_total") == before + 1; });
    everything_is_given_back();
    EXPECT_EQ(metric("pagedkv_request_seconds_count"), 0);  // It has none: it did not end.
  }
}

TEST_F(HttpTest, AnswerThatFailsMidwayHasTheStatusOfAnError) {
  start({.page_size = 16, .pages = 2048, .breaks_every_step = true});
  const Json whole = complete({{"prompt", "a"}, {"n", 2}}, 500);
  EXPECT_EQ(whole["error"]["type"], "server_error");
  EXPECT_FALSE(whole["error"]["message"].get<std::string>().empty());
  const auto streamed =
      client().Post("/v1/completions", Json{{"model", "tiny"}, {"prompt", "a"}, {"stream", true}}.dump(), kJson);
  EXPECT_THAT(streamed->body, HasSubstr("data: {\"error\":{"));
  everything_is_given_back();
}

TEST_F(HttpTest, ShutdownTellsThoseWhomItCannotWaitFor) {
  start();
  const Json endless = {{"model", "tiny"}, {"prompt", "a"}, {"max_tokens", 8000}, {"ignore_eos", true}};
  Json streaming = endless;
  streaming["stream"] = true;
  int status = 0;
  std::string streamed;
  std::thread whole_reader([&] {
    const auto response = client().Post("/v1/completions", endless.dump(), kJson);
    if (response) status = response->status;
  });
  std::thread stream_reader([&] {
    const auto response = client().Post("/v1/completions", streaming.dump(), kJson);
    if (response) streamed = response->body;
  });
  eventually([&] { return metric("pagedkv_requests_open") == 2; });
  server_->shutdown(0.01);
  whole_reader.join();
  stream_reader.join();
  EXPECT_EQ(status, 503);
  EXPECT_THAT(streamed, HasSubstr("\"code\":\"shutting_down\""));
}

TEST_F(HttpTest, HalfARequestIsLetGo) {
  start({.page_size = 16, .pages = 2048}, {.read_timeout_seconds = 1});
  const int slow =
      connect_and_send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{\"model\"");
  char answer[512];
  EXPECT_GE(::recv(slow, answer, sizeof answer, 0), 0);  // An error or the end, and not a wait for ever.
  ::close(slow);
  complete({{"prompt", "a"}});
}

TEST_F(HttpTest, ReaderThatTakesNothingIsLetGo) {
  start({.page_size = 16, .pages = 4096}, {.write_timeout_seconds = 1});
  const Json body = {{"model", "tiny"},    {"prompt", "p"},      {"n", 8},        {"logprobs", 5},
                     {"max_tokens", 7000}, {"ignore_eos", true}, {"stream", true}};
  const int deaf = connect_and_send(raw_post(body.dump()));
  eventually([&] { return metric("pagedkv_disconnects_total") == 1; });
  everything_is_given_back();
  ::close(deaf);
  complete({{"prompt", "a"}});
}

TEST_F(HttpTest, NoiseInsteadOfHttp) {
  start();
  for (const std::string& noise :
       {std::string("\0\1\2\3\r\n\r\n", 8), std::string(20'000, 'A') + "\r\n\r\n",
        std::string("POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n"),
        std::string("POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\nx")}) {
    const int fd = connect_and_send(noise);
    ::shutdown(fd, SHUT_WR);
    char answer[4096];
    while (::recv(fd, answer, sizeof answer, 0) > 0) {
    }
    ::close(fd);
    complete({{"prompt", "a"}, {"max_tokens", 1}});
  }
}

TEST_F(HttpTest, ShutdownFinishesWhatHasBegunAndRefusesTheRest) {
  start();
  std::string streamed;
  std::thread reader([&] {
    httplib::Request request;
    request.method = "POST";
    request.path = "/v1/completions";
    request.body =
        Json{{"model", "tiny"}, {"prompt", "a"}, {"max_tokens", 400}, {"ignore_eos", true}, {"stream", true}}.dump();
    request.content_receiver = [&](const char* data, std::size_t bytes, std::uint64_t, std::uint64_t) {
      streamed.append(data, bytes);
      return true;
    };
    auto connection = client();
    static_cast<void>(connection.send(request));
  });
  eventually([&] { return metric("pagedkv_requests_open") == 1 || metric("pagedkv_generated_tokens_total") > 0; });
  server_->shutdown(30);
  reader.join();
  EXPECT_THAT(streamed, HasSubstr("\"finish_reason\":\"length\""));
  EXPECT_THAT(streamed, ::testing::EndsWith("data: [DONE]\n\n"));
  EXPECT_FALSE(client().Get("/health"));
}

TEST_F(HttpTest, ManyStreamsAtOnceAllEnd) {
  start({.page_size = 16, .pages = 400});
  std::vector<std::thread> clients;
  clients.reserve(150);
  std::atomic<int> done = 0;
  for (int i = 0; i < 150; ++i) {
    clients.emplace_back([&, i] {
      const auto body = Json{{"model", "tiny"},  {"prompt", std::string(static_cast<std::size_t>(10 + i % 50), 'a')},
                             {"max_tokens", 30}, {"stream", true},
                             {"temperature", 0}, {"ignore_eos", true}};
      const auto response = client().Post("/v1/completions", body.dump(), kJson);
      done += response && response->status == 200 && response->body.ends_with("data: [DONE]\n\n");
    });
  }
  for (std::thread& thread : clients) thread.join();
  EXPECT_EQ(done, 150);
  everything_is_given_back();
}

}  // namespace
}  // namespace serving
