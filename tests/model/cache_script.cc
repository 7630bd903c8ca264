// Scripts as text, by chance, and made shorter.
#include "model/cache_script.h"

#include <algorithm>
#include <exception>
#include <istream>
#include <iterator>
#include <ostream>
#include <random>
#include <sstream>
#include <stdexcept>

#include "model/cache_machine.h"

namespace pagedkv::testing {

namespace {

struct Kind {
  const char* name;
  std::uint32_t weight;
};
constexpr std::array<Kind, kNumCacheOps> kKinds{{{"open", 10},
                                                 {"close", 6},
                                                 {"drop", 2},
                                                 {"fork", 5},
                                                 {"truncate", 4},
                                                 {"slide", 1},
                                                 {"append", 2},
                                                 {"begin", 20},
                                                 {"work", 22},
                                                 {"finish", 18},
                                                 {"pin", 2},
                                                 {"unpin", 2},
                                                 {"clear", 1},
                                                 {"trim", 1},
                                                 {"set_capacity", 2},
                                                 {"take", 3},
                                                 {"give", 3},
                                                 {"ask", 2},
                                                 {"misuse", 4}}};

struct Field {
  const char* name;
  std::uint32_t CacheCase::* member;
};
constexpr std::array<Field, 15> kFields{{{"page_size", &CacheCase::page_size},
                                         {"capacity", &CacheCase::capacity},
                                         {"max_capacity", &CacheCase::max_capacity},
                                         {"watermark", &CacheCase::watermark},
                                         {"layers", &CacheCase::layers},
                                         {"sinks", &CacheCase::sinks},
                                         {"sliding", &CacheCase::sliding},
                                         {"layers_per_page", &CacheCase::layers_per_page},
                                         {"dtype", &CacheCase::dtype},
                                         {"target", &CacheCase::target},
                                         {"variant", &CacheCase::variant},
                                         {"policy", &CacheCase::policy},
                                         {"prefix", &CacheCase::prefix},
                                         {"zeroing", &CacheCase::zeroing},
                                         {"colliding", &CacheCase::colliding}}};

CacheCase parse_case(std::istream& words) {
  CacheCase on;
  for (std::string word; words >> word;) {
    const std::size_t equals = word.find('=');
    if (equals == std::string::npos) throw std::runtime_error("a case is a list of name=value: " + word);
    const std::string name = word.substr(0, equals);
    const int value = std::stoi(word.substr(equals + 1));
    const auto field = std::find_if(kFields.begin(), kFields.end(), [&](const Field& f) { return name == f.name; });
    if (name == "window") {
      on.window = value;
    } else if (field != kFields.end()) {
      on.*field->member = static_cast<std::uint32_t>(value);
    } else {
      throw std::runtime_error("a case has no field " + name);
    }
  }
  return on;
}

// Shrinking
// ------------------------------------------------------------------------------------------------------------

class Shrinker {
 public:
  explicit Shrinker(CacheScript script) : best_(std::move(script)) {}

  CacheScript run() {
    bool shrank = true;
    while (shrank && num_runs_ < kMaxRuns) {
      shrank = false;
      for (std::size_t length = std::max<std::size_t>(best_.ops.size() / 2, 1); length > 0; length /= 2) {
        shrank |= without_runs_of(length);
      }
      shrank |= with_smaller_numbers();
    }
    return std::move(best_);
  }

 private:
  static constexpr int kMaxRuns = 20000;

  bool takes(const CacheScript& candidate) {
    if (++num_runs_ > kMaxRuns || run_script(candidate).empty()) return false;
    best_ = candidate;
    return true;
  }

  bool without_runs_of(std::size_t length) {
    bool shrank = false;
    for (std::size_t at = best_.ops.size(); at > 0;) {
      const std::size_t begin = at > length ? at - length : 0;
      CacheScript candidate{best_.on, {}};
      std::copy(best_.ops.begin(), best_.ops.begin() + static_cast<std::ptrdiff_t>(begin),
                std::back_inserter(candidate.ops));
      std::copy(best_.ops.begin() + static_cast<std::ptrdiff_t>(at), best_.ops.end(),
                std::back_inserter(candidate.ops));
      shrank |= takes(candidate);
      at = std::min(begin, best_.ops.size());
    }
    return shrank;
  }

  bool with_smaller_numbers() {
    bool shrank = false;
    for (std::size_t i = 0; i < best_.ops.size(); ++i) {
      for (std::uint32_t CacheOp::* number : {&CacheOp::a, &CacheOp::b, &CacheOp::c}) {
        for (const std::uint32_t smaller : {0U, 1U, best_.ops[i].*number & 7U, best_.ops[i].*number / 2}) {
          if (smaller >= best_.ops[i].*number) continue;
          CacheScript candidate = best_;
          candidate.ops[i].*number = smaller;
          if (takes(candidate)) {
            shrank = true;
            break;
          }
        }
      }
    }
    return shrank;
  }

  CacheScript best_;
  int num_runs_ = 0;
};

}  // namespace

const char* to_string(CacheOpKind kind) noexcept { return kKinds[static_cast<std::size_t>(kind)].name; }

std::array<std::uint32_t, kNumCacheOps> op_weights() noexcept {
  std::array<std::uint32_t, kNumCacheOps> weights{};
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = kKinds[i].weight;
  return weights;
}

std::ostream& operator<<(std::ostream& out, const CacheCase& on) {
  out << "case window=" << on.window;
  for (const Field& field : kFields) out << ' ' << field.name << '=' << on.*field.member;
  return out;
}

std::ostream& operator<<(std::ostream& out, const CacheOp& op) {
  return out << to_string(op.kind) << ' ' << op.a << ' ' << op.b << ' ' << op.c;
}

std::ostream& operator<<(std::ostream& out, const CacheScript& script) {
  out << script.on << '\n';
  for (const CacheOp& op : script.ops) out << op << '\n';
  return out;
}

CacheScript parse_script(std::istream& in) {
  CacheScript script;
  for (std::string line; std::getline(in, line);) {
    if (line.empty() || line.front() == '#') continue;
    std::istringstream words(line);
    std::string name;
    words >> name;
    if (name == "case") {
      script.on = parse_case(words);
      continue;
    }
    const auto kind = std::find_if(kKinds.begin(), kKinds.end(), [&](const Kind& k) { return name == k.name; });
    CacheOp op;
    if (kind == kKinds.end() || !(words >> op.a >> op.b >> op.c)) throw std::runtime_error("no operation: " + line);
    op.kind = static_cast<CacheOpKind>(kind - kKinds.begin());
    script.ops.push_back(op);
  }
  return script;
}

CacheScript random_script(std::uint64_t seed, std::size_t num_ops) {
  std::mt19937_64 random(seed);
  const auto below = [&random](std::uint32_t bound) { return static_cast<std::uint32_t>(random() % bound); };
  CacheScript script;
  CacheCase& on = script.on;
  on.page_size = 1 + below(5);
  on.capacity = 1 + below(below(2) == 0 ? 10 : 40);
  on.max_capacity = on.capacity + (below(2) == 0 ? 0 : below(on.capacity + 1));
  on.watermark = below(4) == 0 ? below(std::min(on.capacity + 1, 4U)) : 0;
  on.layers = 1 + below(4);
  on.window = below(2) == 0 ? -1 : static_cast<std::int32_t>(below(12));
  on.sinks = on.window >= 0 && below(3) == 0 ? below(8) : 0;
  on.sliding = on.window >= 0 && below(2) == 0 ? below(1U << on.layers) : 0;
  on.layers_per_page = on.sliding != 0 && below(2) == 0 ? 1 : 0;
  on.dtype = below(3);
  on.target = below(2) == 0 ? 0 : below(8);
  on.variant = below(3) == 0 ? below(16) : 0;
  on.policy = below(3);
  on.prefix = below(8) != 0 ? 1 : 0;
  on.zeroing = below(2);
  on.colliding = below(6) == 0 ? 1 : 0;

  const auto weights = op_weights();
  std::discrete_distribution<std::uint32_t> kinds(weights.begin(), weights.end());
  script.ops.reserve(num_ops);
  for (std::size_t i = 0; i < num_ops; ++i) {
    script.ops.push_back({static_cast<CacheOpKind>(kinds(random)), below(1U << 20), below(1U << 20), below(1U << 20)});
  }
  return script;
}

std::string run_script(const CacheScript& script) try {
  CacheMachine machine(script.on);
  for (const CacheOp& op : script.ops) machine.run(op);
  machine.finish();
  return {};
} catch (const std::exception& difference) {
  return difference.what();
}

CacheScript shrink_script(CacheScript script) { return Shrinker(std::move(script)).run(); }

}  // namespace pagedkv::testing
