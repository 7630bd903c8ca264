// HttpServer: OpenAI's API, metrics and the pool's page over one Engine.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/engine.h"
#include "http/api_request.h"
#include "http/metrics.h"
#include "tokenizer/tokenizer.h"

namespace serving {

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 8080;  ///< 0 = any free one.
  std::uint64_t max_body_bytes = 4 << 20;
  std::uint32_t max_prompts = 128;  ///< Of one call. No more than the engine's requests: they are taken all or none.
  std::uint32_t max_connections = 2048;  ///< Each has a thread while it lasts; more wait.
  int read_timeout_seconds = 10;         ///< For a request's next bytes: slow senders are let go.
  int write_timeout_seconds = 10;        ///< For a receiver that takes nothing.
};

/// Endpoints: POST /v1/completions, POST /v1/chat/completions, GET /v1/models, /health, /metrics, /, /pool.json.
class HttpServer {
 public:
  /// All are borrowed.
  HttpServer(Engine& engine, pagedkv::KvCache& cache, const Tokenizer& tokenizer, ApiLimits limits,
             HttpOptions options);
  ~HttpServer();

  /// Binds the port, and answers from threads of its own. Returns the port. Throws std::runtime_error if it cannot.
  int start();
  /// Refuses new calls, lets those in progress end within `seconds`, then closes.
  void shutdown(double seconds);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace serving
