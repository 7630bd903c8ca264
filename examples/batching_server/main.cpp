// pagedkv-server: how to embed pagedkv in a batching server, from the pool to the port. Read it top to bottom.
#include <fmt/core.h>
#include <pagedkv/pagedkv.h>
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <span>

#include "app/arguments.h"
#include "app/loaded_model.h"
#include "engine/engine.h"
#include "http/http_server.h"

namespace {

using namespace serving;

struct Options {
  ModelPaths paths;
  std::string weights = "f32", kv_dtype = "bf16";
  std::uint64_t pool_mib = 256, pool_pages = 0;
  std::uint32_t page_size = 16;
  std::int32_t window = 0;
  std::uint32_t watermark_pages = 8;
  bool no_prefix_cache = false;
  EngineOptions engine;
  HttpOptions http;
  int timeout_seconds = 10;
  double drain_seconds = 30;
};

Options parse(int argc, char** argv);

// 1. The pool. One KvCache holds the K and V of every sequence that the server will ever serve. It is made once, from
//    the model's shape and the memory that the operator grants, and never grows, moves or fragments.
pagedkv::KvCache make_pool(const Options& options, const Decoder& decoder) {
  pagedkv::KvCacheOptions pool;
  pool.shape = decoder.kv_shape(parse_dtype(options.kv_dtype));
  pool.page_size = options.page_size;
  if (options.pool_pages > 0) {
    pool.capacity_pages = options.pool_pages;
  } else {
    pool.capacity_bytes = options.pool_mib << 20;
  }
  // Pages that admission keeps in hand, so that running sequences can grow for a while before somebody must give way.
  pool.watermark_pages = options.watermark_pages;
  // With a sliding window, pages behind it come back by themselves, and prompts may be longer than the whole pool.
  pool.attention.window_left = options.window > 0 ? options.window - 1 : decoder.config().window_left;
  auto cache = pagedkv::KvCache::create(pool);
  if (!cache) throw std::runtime_error(fmt::format("the pool cannot be made: {}", cache.error().what));
  return std::move(cache).value();
}

// 2. The protocol, once by hand: what a request does with the pool from its arrival to its end. The server rehearses it
//    before it opens its door, so that no client waits for what only a first step costs.
pagedkv::Result<void> rehearse(pagedkv::KvCache& cache, Decoder& decoder) {
  const std::vector<Token> prompt(5, 0);  // Any tokens will do.
  std::vector<float> logits;

  // A request arrives. Its sequence begins with every page whose tokens somebody computed before under this salt.
  auto opened = cache.open(prompt, {.cache_salt = "rehearsal"});
  if (!opened) return opened.error();
  pagedkv::Sequence chat = std::move(opened).value();
  const auto cached = static_cast<std::uint32_t>(chat.num_tokens());

  // Prefill. A step reserves pages for all new tokens of its whole batch, or none: after kOutOfPages every sequence is
  // as it was, and somebody must give way. Decoder::forward then calls Step::write (K and V into the pages) and
  // Step::attend (each row over its own sequence's pages) for each layer. A step that is not committed never happened.
  auto prefill = cache.begin_step({{&chat, static_cast<std::uint32_t>(prompt.size()) - cached}});
  if (!prefill) return prefill.error();
  const std::array<std::uint32_t, 5> positions = {0, 1, 2, 3, 4};
  const std::array<std::uint32_t, 1> last_row = {static_cast<std::uint32_t>(prompt.size()) - cached - 1};
  auto done = decoder.forward(*prefill, std::span(prompt).subspan(cached), std::span(positions).subspan(cached),
                              last_row, logits);
  if (!done || !(done = prefill->commit())) return done;

  // A second sample of the same prompt: a fork shares every page, and copies one only when it writes there.
  auto forked = chat.fork();
  if (!forked) return forked.error();
  pagedkv::Sequence sample = std::move(forked).value();

  // Decode both in one step: the sample's next token, and the chat's with two guesses after it. The logits tell how
  // many guesses were right; say one. Only that is committed, the other's slot is free again.
  const std::array<Token, 4> next = {0, 0, 0, 0};
  const std::array<std::uint32_t, 4> next_positions = {5, 6, 7, 5}, rows = {0, 1, 2, 3};
  const std::array<std::uint32_t, 2> accepted = {2, 1};
  auto decode = cache.begin_step({{&chat, 3, std::span(next).first(3)}, {&sample, 1, std::span(next).last(1)}});
  if (!decode) return decode.error();
  done = decoder.forward(*decode, next, next_positions, rows, logits);
  return done ? decode->commit(accepted) : done;
}  // Done, cancelled or preempted: a sequence that goes away gives its pages back. Prefixes stay findable until
   // evicted.

//    The engine does the same for a whole batch, step after step: engine/engine_step.cc. Which sequences take part in a
//    step, how long a chunk of a prompt is, and who gives way, is engine/scheduler.h: plain bookkeeping in page counts.

// 3. The door. HTTP threads only parse, submit and wait; the engine's one thread owns all sequences, so no lock is held
//    while the model computes. A client that goes away is cancelled: before the next step its pages are free.
ApiLimits make_limits(const LoadedModel& model, const pagedkv::KvCache& cache) {
  const bool has_window = cache.options().attention.window_left >= 0;
  return {.model_name = model.name,
          .max_positions = model.decoder->config().max_positions,
          .pool_pages = has_window ? 0 : cache.stats().pool.capacity_pages,
          .page_size = cache.options().page_size};
}

// 4. The end. SIGTERM or SIGINT: refuse what is new, finish what has begun, leave not a page behind.
void wait_for_signal(const sigset_t& signals) {
  int signal = 0;
  sigwait(&signals, &signal);
}

sigset_t block_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // In every thread made from here on.
  signal(SIGPIPE, SIG_IGN);                       // A client that has gone is an error code, not the end.
  return signals;
}

// Every stream is a file descriptor; the default limit of many systems is 1,024.
void allow_many_connections() {
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
}

void serve(Options options) {
  const sigset_t signals = block_signals();
  allow_many_connections();

  const LoadedModel model = load_model(options.paths);
  pagedkv::KvCache cache = make_pool(options, *model.decoder);

  if (auto rehearsed = rehearse(cache, *model.decoder); !rehearsed) {
    throw std::runtime_error(fmt::format("the pool fails its first steps: {}", rehearsed.error().what));
  }

  options.engine.prefix_cache = !options.no_prefix_cache;
  Engine engine(*model.decoder, cache, options.engine);
  engine.start();

  HttpServer server(engine, cache, *model.tokenizer, make_limits(model, cache), options.http);
  const int port = server.start();
  const pagedkv::PoolStats pool = cache.stats().pool;
  fmt::print("serving {} on http://{}:{}/ with {} pages of {} tokens ({:.1f} MiB, {})\n", model.name, options.http.host,
             port, pool.capacity_pages, options.page_size,
             static_cast<double>(pool.capacity_pages * pool.page_bytes) / (1 << 20), options.kv_dtype);
  std::fflush(stdout);

  wait_for_signal(signals);
  server.shutdown(options.drain_seconds);
  fmt::print("drained; {} pages still held\n", cache.stats().pool.used_pages);
}

Options parse(int argc, char** argv) {
  Options o;
  CLI::App app("Serves OpenAI's completion API from one pool of KV pages.", "pagedkv-server");
  app.add_option("--model", o.paths.model, "llama2.c checkpoint or Hugging Face folder (default: random weights)");
  app.add_option("--tokenizer", o.paths.tokenizer, "tokenizer.bin or tokenizer.json (default: in the model's folder)");
  app.add_option("--weights", o.weights, "f32 or bf16")->check(CLI::IsMember({"f32", "bf16"}))->capture_default_str();
  app.add_flag_callback(
      "--large-random-model", [&o] { o.paths.random_size = DemoSize::kLarge; }, "88 million random weights, not 3");
  app.add_option("--kv-dtype", o.kv_dtype, "f32, f16 or bf16")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->capture_default_str();
  app.add_option("--pool-mib", o.pool_mib, "memory of the pool")
      ->check(CLI::Range(1U, 1U << 30))
      ->capture_default_str();
  app.add_option("--pool-pages", o.pool_pages, "its number of pages, instead");
  app.add_option("--page-size", o.page_size, "tokens a page")->check(CLI::Range(1U, 256U))->capture_default_str();
  app.add_option("--window", o.window, "sliding window in tokens (default: the model's)")
      ->check(CLI::Range(1, 1 << 30));
  app.add_option("--watermark-pages", o.watermark_pages, "pages that admission keeps in hand")->capture_default_str();
  app.add_flag("--no-prefix-cache", o.no_prefix_cache, "share nothing between requests");
  SchedulerOptions& s = o.engine.scheduler;
  app.add_option("--token-budget", s.token_budget, "new tokens a step")
      ->check(CLI::Range(1U, 1U << 20))
      ->capture_default_str();
  app.add_option("--prefill-chunk", s.prefill_chunk, "prompt tokens of one sequence a step")
      ->check(CLI::Range(1U, 1U << 20))
      ->capture_default_str();
  app.add_option("--max-sequences", s.max_lanes,
                 "sequences admitted to run at once; samples and beams that fork from one are not counted")
      ->check(CLI::Range(1U, 1U << 20))
      ->capture_default_str();
  app.add_flag("--reserve-max-length", s.reserve_max_length,
               "for comparison: reserve the whole context for each sequence");
  app.add_option("--max-requests", o.engine.max_requests, "requests waiting and running; more get 429")
      ->check(CLI::Range(1U, 1U << 20))
      ->capture_default_str();
  app.add_option("--host", o.http.host, "address to listen on")->capture_default_str();
  app.add_option("--port", o.http.port, "0 = any free one")->check(CLI::Range(0, 65535))->capture_default_str();
  app.add_option("--max-body-bytes", o.http.max_body_bytes, "larger requests get 413")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 40))
      ->capture_default_str();
  app.add_option("--max-connections", o.http.max_connections, "connections served at once")
      ->check(CLI::Range(1U, 1U << 20))
      ->capture_default_str();
  app.add_option("--timeout-seconds", o.timeout_seconds, "for clients that neither send nor read")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  app.add_option("--drain-seconds", o.drain_seconds, "for requests to finish after SIGTERM")
      ->check(between(0, 86400))
      ->capture_default_str();
  app.get_formatter()->column_width(32);
  if (const auto code = read_arguments(app, argc, argv)) std::exit(*code);
  o.paths.weights = parse_weight_type(o.weights);
  o.http.max_prompts = std::min(o.http.max_prompts, o.engine.max_requests);
  o.http.read_timeout_seconds = o.http.write_timeout_seconds = o.timeout_seconds;
  return o;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    serve(parse(argc, argv));
  } catch (const std::exception& error) {
    fmt::print(stderr, "pagedkv-server: {}\n", error.what());
    return 1;
  }
  return 0;
}
