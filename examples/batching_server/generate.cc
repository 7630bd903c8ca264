// pagedkv-generate: a batch of prompts through one pool of pages, in the terminal.
#include <fmt/core.h>

#include <algorithm>
#include <cstdio>

#include "app/arguments.h"
#include "app/batch_report.h"
#include "app/loaded_model.h"
#include "engine/engine.h"
#include "tokenizer/utf8.h"

namespace {

using namespace serving;

constexpr std::uint64_t kMaxPoolBytes = 4ULL << 30;  // A batch that needs more goes through in turns.

struct Options {
  ModelPaths paths;
  std::vector<std::string> prompts;
  std::uint32_t max_tokens = 128;
  float temperature = 0;
  std::uint64_t seed = 0;
  std::string kv_dtype = "f32";
  std::uint32_t page_size = 16;
  std::uint64_t pool_pages = 0;  // 0 = room for all.
  SchedulerOptions scheduler = {};
  bool ids = false, table = false;
  std::string html_path;
};

// Room for every prompt and its output at once, if that is not absurd.
pagedkv::KvCache make_cache(const Options& options, const Decoder& decoder,
                            std::span<const std::vector<Token>> prompts) {
  std::uint64_t pages = 0, largest = 1;
  for (const auto& prompt : prompts) {
    const std::uint64_t tokens =
        std::min<std::uint64_t>(prompt.size() + options.max_tokens, decoder.config().max_positions);
    const std::uint64_t needed = tokens / options.page_size + 1;
    pages += needed;
    largest = std::max(largest, needed);
  }
  const pagedkv::ModelShape shape = decoder.kv_shape(parse_dtype(options.kv_dtype));
  const std::uint64_t page_bytes = std::uint64_t{options.page_size} * shape.num_layers * shape.num_kv_heads * 2 *
                                   shape.head_dim * pagedkv::size_of(shape.dtype);
  pages = std::max(largest, std::min(pages, kMaxPoolBytes / page_bytes));
  if (options.pool_pages > 0) pages = options.pool_pages;
  auto cache = pagedkv::KvCache::create({.shape = shape,
                                         .page_size = options.page_size,
                                         .capacity_pages = pages,
                                         .attention = {.window_left = decoder.config().window_left}});
  if (!cache) throw std::runtime_error(std::string("the pool could not be made: ") + cache.error().what);
  return std::move(cache).value();
}

std::string joined(const std::vector<Token>& tokens) {
  std::string line;
  for (Token token : tokens) {
    if (!line.empty()) line += ' ';
    line += std::to_string(token);
  }
  return line;
}

using Prompts = std::vector<std::vector<Token>>;

Prompts encode_prompts(const Options& options, const LoadedModel& model) {
  Prompts prompts;
  const std::uint32_t context = model.decoder->config().max_positions;
  for (const std::string& text : options.prompts) {
    prompts.push_back(model.tokenizer->encode_prompt(text));
    if (prompts.back().empty()) throw std::runtime_error("a prompt has no tokens");
    if (prompts.back().size() >= context) {
      throw std::runtime_error(
          fmt::format("a prompt has {} tokens; the model's context is {}", prompts.back().size(), context));
    }
  }
  return prompts;
}

void print_outputs(const Options& options, const Tokenizer& tokenizer, const Prompts& prompts, const Prompts& outputs) {
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    if (options.ids) {
      fmt::print("{}\n", joined(outputs[i]));
      continue;
    }
    std::vector<Token> all = prompts[i];
    all.insert(all.end(), outputs[i].begin(), outputs[i].end());
    fmt::print("{}{}\n", i > 0 ? "\n" : "", tokenizer.decode(all));
  }
}

// The output alone: what the text has beyond the prompt's own; bytes that are no character become U+FFFD.
std::string output_text(const Tokenizer& tokenizer, const std::vector<Token>& prompt,
                        const std::vector<Token>& output) {
  Utf8Stream characters;
  std::string text;
  std::optional<Token> previous = prompt.back();
  for (const Token token : output) {
    text += characters.push(tokenizer.piece(previous, token));
    previous = token;
  }
  return text + characters.finish();
}

void generate(const Options& options) {
  LoadedModel model = load_model(options.paths);
  const Prompts prompts = encode_prompts(options, model);
  Prompts outputs(prompts.size());
  pagedkv::KvCache cache = make_cache(options, *model.decoder, prompts);
  Engine engine(*model.decoder, cache,
                {.scheduler = options.scheduler, .max_requests = static_cast<std::uint32_t>(prompts.size())});
  const bool wants_report = options.table || !options.html_path.empty();
  BatchReport report(engine, cache, model.name, model.decoder->config().max_positions);
  std::string failure;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    Request request;
    request.prompt = prompts[i];
    const auto room = model.decoder->config().max_positions - static_cast<std::uint32_t>(prompts[i].size());
    request.max_tokens = std::min(options.max_tokens, room);
    request.sampling = {.temperature = options.temperature, .seed = options.seed + i};
    request.stop_tokens = model.tokenizer->stop_tokens();
    report.prompts.push_back({.prompt = options.prompts[i], .prompt_tokens = prompts[i].size()});
    const SubmitError refused = engine.submit(
        std::move(request),
        [&, i](const Event& event) {
          if (event.finish == FinishReason::kFailed) failure = event.failure;
          if (event.finish == FinishReason::kNone) outputs[i].push_back(event.token);
          report.hear(i, event);
          return true;
        },
        &report.prompts.back().request);
    if (refused != SubmitError::kNone) throw std::runtime_error("a prompt does not fit the pool");
  }
  while (engine.step()) {
    if (wants_report) report.look();
  }
  if (wants_report) report.look();
  if (!failure.empty()) throw std::runtime_error(failure);

  for (std::size_t i = 0; i < prompts.size(); ++i) {
    report.prompts[i].output = output_text(*model.tokenizer, prompts[i], outputs[i]);
  }
  if (options.table) {
    fmt::print("{}", report.table());
  } else {
    print_outputs(options, *model.tokenizer, prompts, outputs);
  }
  if (!options.html_path.empty()) {
    report.write_html(options.html_path);
    if (!options.ids) fmt::print("plots: {}\n", options.html_path);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Generates text for a batch of prompts through one pool of pages.", "pagedkv-generate");
  app.add_option("--model", options.paths.model,
                 "llama2.c checkpoint, or folder with config.json and model.safetensors (default: random weights)");
  app.add_option("--tokenizer", options.paths.tokenizer,
                 "tokenizer.bin or tokenizer.json (default: in the model's folder)");
  // One value each, empty ones too: CLI11 would drop an empty string from a list.
  app.add_option_function<std::string>(
         "--prompt", [&](const std::string& text) { options.prompts.push_back(text); },
         "a prompt; repeat it for a batch")
      ->required()
      ->trigger_on_parse()
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--max-tokens", options.max_tokens, "tokens to generate for each prompt")
      ->check(CLI::Range(1U, 1U << 30));
  app.add_option("--temperature", options.temperature, "0 = greedy")->check(CLI::Range(0.0F, 100.0F));
  app.add_option("--seed", options.seed, "of the random numbers");
  app.add_option("--kv-dtype", options.kv_dtype, "format of the pages")->check(CLI::IsMember({"f32", "f16", "bf16"}));
  app.add_option("--page-size", options.page_size, "tokens a page")->check(CLI::Range(1U, 256U));
  app.add_option("--pool-pages", options.pool_pages, "pages of the pool (default: room for all prompts at once)");
  app.add_option("--token-budget", options.scheduler.token_budget, "new tokens a step, at most")
      ->check(CLI::Range(1U, 1U << 20));
  auto* const table = app.add_flag("--table", options.table, "print a table of the batch instead of its texts");
  app.add_option("--html", options.html_path, "write one self-contained page with plots of the pool to this file");
  app.add_flag("--ids", options.ids, "print the generated token ids alone, a line a prompt")->excludes(table);
  app.get_formatter()->column_width(28);
  if (const auto code = serving::read_arguments(app, argc, argv)) return *code;
  try {
    generate(options);
  } catch (const std::exception& error) {
    fmt::print(stderr, "pagedkv-generate: {}\n", error.what());
    return 1;
  }
  return 0;
}
