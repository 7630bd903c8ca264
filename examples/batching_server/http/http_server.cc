// Routes, and the life of one call: read, submit, stream, and cancel when nobody listens any more.
#include "http/http_server.h"

#include <httplib.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>

#include "http/bounded_server.h"
#include "http/completion.h"
#include "http/connection.h"
#include "http/connection_threads.h"
#include "http/pool_page.h"

namespace serving {
namespace {

// A client that has gone is noticed when a token is sent to it. Those that wait for their first are looked at this
// often, by all connections together 2,000 times a second at most.
constexpr double kLookSeconds = 0.05, kLookSecondsPerCall = 0.0005;
constexpr int kBacklog = 1024;             // httplib's own is 5: a crowd that arrives at once would wait for seconds.
constexpr int kClientClosedRequest = 499;  // As nginx has it: for our metrics, and for who closed one side only.
constexpr std::uint64_t kFramingBytes = 64 << 10;  // For a body in small chunks, besides as much again as the body.
constexpr const char* kJsonType = "application/json";

void answer(httplib::Response& response, const ApiError& error) {
  response.status = error.status;
  response.set_content(error.to_json().dump(-1, ' ', false, Json::error_handler_t::replace), kJsonType);
  if (error.status == 429 || error.status == 503) response.set_header("Retry-After", "1");
}

bool takes_calls(const std::string& path) { return path == "/v1/completions" || path == "/v1/chat/completions"; }

ApiError unknown_url(const httplib::Request& request) {
  return {404, "invalid_request_error", "Unknown request URL: " + request.method + " " + request.path, "unknown_url"};
}

ApiError body_too_large() {
  return {413, "invalid_request_error", "The body of the request is too large.", "body_too_large"};
}

// Requests whose body must not be read: httplib would keep all of one that nobody wants, and inflate a small one to any
// size.
std::optional<ApiError> refusal_before_body(const httplib::Request& request) {
  if (!takes_calls(request.path)) {
    if (request.method == "GET" || request.method == "HEAD") return std::nullopt;
    return unknown_url(request);
  }
  if (request.method != "POST") {
    return ApiError(405, "invalid_request_error", "Not allowed to " + request.method + " on " + request.path + ".",
                    "method_not_allowed");
  }
  const std::string encoding = request.get_header_value("Content-Encoding");
  if ((!encoding.empty() && encoding != "identity") || request.is_multipart_form_data()) {
    return ApiError(415, "invalid_request_error", "The body must be JSON, neither compressed nor in parts.",
                    "unsupported_media_type");
  }
  return std::nullopt;
}

// For a request whose body, or some of it, stays unread.
void close_after_answer(httplib::Response& response) {
  response.set_header("Connection", "close");
  if (Connection* const connection = Connection::of_this_thread()) connection->close_after_answer();
}

httplib::Server::HandlerResponse before_routing(const httplib::Request& request, httplib::Response& response) {
  using enum httplib::Server::HandlerResponse;
  const std::optional<ApiError> refused = refusal_before_body(request);
  const bool has_body = request.has_header("Content-Length") || request.has_header("Transfer-Encoding");
  if (has_body && (refused || request.method != "POST")) close_after_answer(response);
  if (!refused) return Unhandled;
  if (refused->status == 405) response.set_header("Allow", "POST");
  answer(response, *refused);
  return Handled;
}

// Throws ApiError: longer than `max_bytes`, or cut off.
std::string read_body(const httplib::ContentReader& read, httplib::Response& response, std::uint64_t max_bytes) {
  std::string body;
  bool is_too_large = false;
  const bool is_read = read([&](const char* data, std::size_t bytes) {
    is_too_large = body.size() + bytes > max_bytes;
    if (!is_too_large) body.append(data, bytes);
    return !is_too_large;
  });
  if (is_read) return body;
  close_after_answer(response);
  if (is_too_large || response.status == 413) throw body_too_large();
  throw ApiError(400, "invalid_request_error", "The request could not be read.");
}

}  // namespace

struct HttpServer::Impl {
  Impl(Engine& engine_, pagedkv::KvCache& cache_, const Tokenizer& tokenizer_, ApiLimits limits_, HttpOptions options_)
      : engine(engine_),
        cache(cache_),
        tokenizer(tokenizer_),
        limits(std::move(limits_)),
        options(std::move(options_)),
        metrics(engine),
        server({.max_body_bytes = 2 * options.max_body_bytes + kFramingBytes,
                .read_timeout_seconds = options.read_timeout_seconds,
                .write_timeout_seconds = options.write_timeout_seconds}) {}

  void set_up();
  void route();
  void complete(const httplib::ContentReader& body, httplib::Response& response, bool is_chat);
  void stream(const std::shared_ptr<Completion>& completion, httplib::Response& response);
  void answer_whole(const std::shared_ptr<Completion>& completion, httplib::Response& response);
  [[nodiscard]] double look_seconds() const { return std::max(kLookSeconds, kLookSecondsPerCall * open_calls); }
  // Counts a call from its beginning to its last byte, so that a shutdown can wait for it.
  std::shared_ptr<void> count_call() {
    ++open_calls;
    return {nullptr, [this](void*) { --open_calls; }};
  }

  Engine& engine;
  pagedkv::KvCache& cache;
  const Tokenizer& tokenizer;
  const ApiLimits limits;
  const HttpOptions options;
  Metrics metrics;
  BoundedServer server;
  std::thread listener;
  socket_t listening_socket = INVALID_SOCKET;
  std::atomic<int> open_calls = 0;
  std::atomic<bool> is_shutting_down = false;
};

void HttpServer::Impl::set_up() {
  server.new_task_queue = [this] { return new ConnectionThreads(options.max_connections); };
  server.set_payload_max_length(options.max_body_bytes);
  server.set_keep_alive_max_count(1'000'000);
  server.set_keep_alive_timeout(options.read_timeout_seconds);
  server.set_tcp_nodelay(true);
  server.set_socket_options([this](socket_t socket) {
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    listening_socket = socket;
  });
  server.set_logger(
      [this](const httplib::Request&, const httplib::Response& response) { metrics.count_response(response.status); });
  // Whatever httplib refuses by itself (unknown paths, malformed requests) in OpenAI's shape.
  server.set_error_handler([](const httplib::Request& request, httplib::Response& response) {
    if (!response.body.empty()) return;
    if (response.status == 404) return answer(response, unknown_url(request));
    answer(response, {response.status, "invalid_request_error", "The request could not be read."});
  });
  server.set_exception_handler(
      [](const httplib::Request&, httplib::Response& response, const std::exception_ptr& thrown) {
        try {
          std::rethrow_exception(thrown);
        } catch (const ApiError& error) {
          answer(response, error);
        } catch (const std::exception& error) {
          answer(response, {500, "server_error", error.what()});
        }
      });
}

void HttpServer::Impl::route() {
  using httplib::Request;
  using httplib::Response;
  // Bodies by reader: httplib would keep all of one that comes in chunks, and no more than 8,192 bytes of curl's -d.
  server.set_pre_routing_handler(before_routing);
  server.Post("/v1/completions", [this](const Request&, Response& response, const httplib::ContentReader& body) {
    complete(body, response, false);
  });
  server.Post("/v1/chat/completions", [this](const Request&, Response& response, const httplib::ContentReader& body) {
    complete(body, response, true);
  });
  const Json model = {{"id", limits.model_name}, {"object", "model"}, {"created", 0}, {"owned_by", "pagedkv"}};
  server.Get("/v1/models", [model](const Request&, Response& response) {
    response.set_content(Json{{"object", "list"}, {"data", Json::array({model})}}.dump(), kJsonType);
  });
  server.Get("/v1/models/(.*)", [this, model](const Request& request, Response& response) {
    const std::string name = request.matches[1];
    if (name != limits.model_name) {
      throw ApiError(404, "invalid_request_error", "The model '" + name + "' does not exist.", "model_not_found",
                     "model");
    }
    response.set_content(model.dump(), kJsonType);
  });
  server.Get("/health", [this](const Request&, Response& response) {
    response.status = is_shutting_down ? 503 : 200;
    response.set_content(Json{{"status", is_shutting_down ? "draining" : "ok"}}.dump(), kJsonType);
  });
  server.Get("/metrics", [this](const Request&, Response& response) {
    response.set_content(metrics.text(), "text/plain; version=0.0.4; charset=utf-8");
  });
  server.Get("/", [](const Request&, Response& response) {
    response.set_content(pool_page_html(), "text/html; charset=utf-8");
  });
  server.Get("/pool.json", [this](const Request&, Response& response) {
    response.set_content(pool_json(*engine.snapshot(0.25), cache), kJsonType);
  });
}

void HttpServer::Impl::complete(const httplib::ContentReader& body, httplib::Response& response, bool is_chat) {
  const std::string text = read_body(body, response, options.max_body_bytes);
  const auto call_counted = count_call();
  ApiCall call = read_call(text, is_chat, limits, tokenizer);
  if (call.requests.size() > options.max_prompts) {
    throw invalid_request("At most " + std::to_string(options.max_prompts) + " prompts are taken at once.", "prompt");
  }
  const bool is_streamed = call.stream;
  const auto completion = std::make_shared<Completion>(std::move(call), limits.model_name, tokenizer, engine, metrics);
  completion->submit();
  is_streamed ? stream(completion, response) : answer_whole(completion, response);
}

// httplib calls a provider again and again while the client is there, and the releaser once in the end.
void HttpServer::Impl::stream(const std::shared_ptr<Completion>& completion, httplib::Response& response) {
  response.set_header("Cache-Control", "no-store");
  response.set_chunked_content_provider(
      "text/event-stream",  // Exactly so: httplib would compress, and so hold back, any other text.
      [this, completion](std::size_t, httplib::DataSink& sink) {
        const std::optional<std::string> event = completion->next_event(look_seconds());
        if (!event) {
          sink.done();
          return true;
        }
        return event->empty() ? sink.is_writable() : sink.write(event->data(), event->size());
      },
      [this, completion, counted = count_call()](bool is_complete) {
        if (is_complete) return;
        completion->cancel();
        metrics.count_disconnect();
      });
}

// The status is sent when the answer is there: one that fails midway is an error to its client, not an empty success.
void HttpServer::Impl::answer_whole(const std::shared_ptr<Completion>& completion, httplib::Response& response) {
  const Connection* const connection = Connection::of_this_thread();
  while (true) {
    if (const auto body = completion->whole_answer(look_seconds())) return response.set_content(*body, kJsonType);
    if (connection->is_open()) continue;
    completion->cancel();
    metrics.count_disconnect();
    return answer(response, {kClientClosedRequest, "invalid_request_error", "The client closed its side."});
  }
}

HttpServer::HttpServer(Engine& engine, pagedkv::KvCache& cache, const Tokenizer& tokenizer, ApiLimits limits,
                       HttpOptions options)
    : impl_(std::make_unique<Impl>(engine, cache, tokenizer, std::move(limits), std::move(options))) {}

HttpServer::~HttpServer() { shutdown(0); }

int HttpServer::start() {
  Impl& self = *impl_;
  self.set_up();
  self.route();
  int port = self.options.port;
  if (port == 0) {
    port = self.server.bind_to_any_port(self.options.host);
    if (port < 0) throw std::runtime_error("cannot listen on " + self.options.host);
  } else if (!self.server.bind_to_port(self.options.host, port)) {
    throw std::runtime_error("cannot listen on " + self.options.host + ":" + std::to_string(port));
  }
  ::listen(self.listening_socket, kBacklog);  // Again, with room for a crowd.
  self.listener = std::thread([&self] { self.server.listen_after_bind(); });
  while (!self.server.is_running()) std::this_thread::yield();
  return port;
}

void HttpServer::shutdown(double seconds) {
  Impl& self = *impl_;
  if (!self.listener.joinable()) return;
  self.is_shutting_down = true;
  self.engine.drain(seconds);  // New calls get 503 from here on; those in progress finish, or are cancelled.
  // The last bytes are on their way; httplib would cut them off.
  const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(self.options.write_timeout_seconds);
  while (self.open_calls > 0 && std::chrono::steady_clock::now() < patience) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  self.server.stop_all();
  self.listener.join();
}

}  // namespace serving
