// `pagedkv conformance DIR`: the ONNX Attention vectors, through pages.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <vector>

#include "commands.h"
#include "conformance/onnx_case.h"
#include "conformance/paged_run.h"
#include "json_file.h"
#include "pagedkv/cpu.h"
#include "progress.h"

namespace pagedkv::tool {
namespace {

struct Options {
  std::string folder, json, target;
  std::vector<std::uint32_t> page_sizes = {1, 2, 3, 4, 16};
  std::uint64_t seed = 1;
};

enum class Verdict : std::uint8_t { kPass, kFail, kUnsupported };

const char* to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::kPass: return "pass";
    case Verdict::kFail: return "fail";
    case Verdict::kUnsupported: break;
  }
  return "unsupported";
}

struct Outcome {
  std::string name, tier;
  Verdict verdict = Verdict::kPass;
  double max_error = 0;  ///< Largest absolute difference over all outputs and page sizes.
  double tolerance = 0;
  std::string reason;  ///< What differs most and at which page size, or why the case is unsupported.
};

/// Absolute, and relative to the expected value: rounding of the output format, and of its reference's arithmetic.
double tolerance_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return 1e-5;
    case DType::f16: return 1e-3;
    case DType::bf16: break;
  }
  return 1e-2;
}

/// Notes the difference of one output; infinities must agree exactly, and NaN agrees with nothing.
void compare(Outcome& outcome, const char* output, std::uint32_t page_size, const std::vector<float>& got,
             const std::vector<float>& expected, double tolerance) {
  const auto note = [&](double error, const std::string& what, bool failed) {
    if (failed && (outcome.verdict == Verdict::kPass || !(error <= outcome.max_error))) {
      outcome.reason = fmt::format("page size {}: {} {}", page_size, output, what);
    }
    if (failed) outcome.verdict = Verdict::kFail;
    if (!(error <= outcome.max_error)) outcome.max_error = error;
  };
  if (got.size() != expected.size()) {
    note(std::numeric_limits<double>::infinity(), "has the wrong size", true);
    return;
  }
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (got[i] == expected[i]) continue;
    double error = std::abs(static_cast<double>(got[i]) - static_cast<double>(expected[i]));
    if (std::isnan(error)) error = std::numeric_limits<double>::infinity();
    const bool failed = !(error <= tolerance * (1 + std::abs(static_cast<double>(expected[i]))));
    note(error, fmt::format("is {} where {} is expected", got[i], expected[i]), failed);
  }
}

std::vector<float> to_floats(const Rows& rows) {
  std::vector<float> values;
  for (std::size_t i = 0; i < rows.data.size(); i += size_of(rows.dtype)) {
    values.push_back(to_float(rows.dtype, rows.data.data() + i));
  }
  return values;
}

Outcome run_case(const std::filesystem::path& folder, const Options& options) {
  const OnnxCase c = load_case(folder);
  Outcome outcome{.name = c.name, .tier = c.tier, .tolerance = tolerance_of(c.dtype), .reason = c.unsupported};
  if (!c.unsupported.empty()) {
    outcome.verdict = Verdict::kUnsupported;
    return outcome;
  }
  for (const std::uint32_t page_size : options.page_sizes) {
    const PagedOutput output = [&] {
      try {
        return run_paged(c, page_size, options.target, options.seed + page_size);
      } catch (const BadInput& error) {
        throw BadInput(fmt::format("{}: page size {}: {}", folder.string(), page_size, error.what()));
      }
    }();
    if (!output.unsupported.empty()) {
      outcome.verdict = Verdict::kUnsupported;
      outcome.reason = output.unsupported;
      return outcome;
    }
    compare(outcome, "Y", page_size, output.y, to_floats(c.y), outcome.tolerance);
    // Rows of past and new tokens are copies: they must come back as they were.
    if (c.present_k) compare(outcome, "present_key", page_size, output.present_k, to_floats(*c.present_k), 0);
    if (c.present_v) compare(outcome, "present_value", page_size, output.present_v, to_floats(*c.present_v), 0);
    if (c.scores) compare(outcome, "qk_matmul_output", page_size, output.scores, *c.scores, outcome.tolerance);
  }
  return outcome;
}

void print_line(std::FILE* file, const Outcome& outcome) {
  std::string detail = outcome.reason;
  if (outcome.verdict != Verdict::kUnsupported) {
    detail = fmt::format("largest error {:.2g}", outcome.max_error);
    if (!outcome.reason.empty()) detail += ", " + outcome.reason;
  }
  fmt::print(file, "{:<11}  {}  {}\n", to_string(outcome.verdict), outcome.name, detail);
}

ExitCode run_conformance(const Options& options) {
  const std::string target = [&options] {
    const auto found = options.target.empty() ? active_target() : find_target(options.target);
    if (!found) throw BadInput(std::string("kernel target: ") + found.error().what);
    return std::string(found.value()->name);
  }();
  std::FILE* text = options.json == "-" ? stderr : stdout;  // stdout is for JSON alone then
  std::vector<Outcome> outcomes;
  for (const std::filesystem::path& folder : find_cases(options.folder)) {
    outcomes.push_back(run_case(folder, options));
    print_line(text, outcomes.back());
  }
  const auto count = [&outcomes](Verdict verdict) {
    return std::count_if(outcomes.begin(), outcomes.end(),
                         [verdict](const Outcome& o) { return o.verdict == verdict; });
  };
  fmt::print(text, "{} cases at page sizes {}, target {}: {} passed, {} failed, {} unsupported\n", outcomes.size(),
             fmt::join(options.page_sizes, " "), target, count(Verdict::kPass), count(Verdict::kFail),
             count(Verdict::kUnsupported));
  if (!options.json.empty()) {
    Json cases = Json::array();
    for (const Outcome& o : outcomes) {
      Json entry = {{"case", o.name}, {"tier", o.tier}, {"result", to_string(o.verdict)}};
      if (o.verdict != Verdict::kUnsupported) {
        entry["max_error"] = std::isfinite(o.max_error) ? Json(o.max_error) : Json("inf");
        entry["tolerance"] = o.tolerance;
      }
      if (!o.reason.empty()) entry["reason"] = o.reason;
      cases.push_back(std::move(entry));
    }
    write_json(options.json, {{"passed", count(Verdict::kPass)},
                              {"failed", count(Verdict::kFail)},
                              {"unsupported", count(Verdict::kUnsupported)},
                              {"target", target},
                              {"page_sizes", options.page_sizes},
                              {"cases", std::move(cases)}});
  }
  return count(Verdict::kFail) == 0 && count(Verdict::kPass) > 0 ? kDone : kCheckFailed;
}

}  // namespace

Command add_conformance(CLI::App& root) {
  CLI::App* app = root.add_subcommand("conformance", "Run the ONNX Attention vectors through pages");
  app->description(
      "Runs every case of a data set of ONNX Attention vectors through a page pool, page tables and attention plans,\n"
      "past keys and values included, at every page size, with pages in random order. Prints a line a case: pass,\n"
      "fail with the largest error, or unsupported and why. Exit code 1 if a case failed or none passed.");
  auto options = std::make_shared<Options>();
  app->add_option("DIR", options->folder, "Folder of cases (case.json and .npy files each)")->required();
  app->add_option("--json", options->json, "Write the results there as JSON (- = stdout)")->type_name("FILE");
  app->add_option("--page-sizes", options->page_sizes, "Tokens a page, several with commas")
      ->delimiter(',')
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app->add_option("--target", options->target, "Kernel target by name (default: the active one)")->type_name("NAME");
  app->add_option("--seed", options->seed, "Seed of the page order")->capture_default_str();
  return {app, [options] { return run_conformance(*options); }};
}

}  // namespace pagedkv::tool
