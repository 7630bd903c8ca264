// BeamSearch: which hypotheses live on. It sees log-probabilities only; the engine forks their sequences.
#pragma once

#include <pagedkv/types.h>

#include <cstdint>
#include <span>
#include <vector>

namespace serving {

struct BeamOptions {
  std::uint32_t width = 4;
  std::uint32_t max_tokens = 16;  ///< Of output.
  double length_penalty = 1;      ///< A hypothesis scores logprob / length^penalty.
  std::vector<pagedkv::Token> stop_tokens = {};
};

struct Hypothesis {
  std::vector<pagedkv::Token> tokens;  ///< Of output, without the stop token.
  double logprob = 0;                  ///< Sum over its tokens, the stop token included.
  double score = 0;
  bool stopped = false;  ///< By a stop token; else by length.
};

class BeamSearch {
 public:
  explicit BeamSearch(BeamOptions options);

  struct Child {
    std::uint32_t parent;  ///< Index of a live beam before the step.
    pagedkv::Token token;
  };
  /// Extends the live beams by one token each.
  ///
  /// Shape:  rows: log-probabilities [vocab] of each live beam; one beam, without tokens, lives at first
  /// Result: the beams that live now, best first; empty when the search is over
  std::vector<Child> advance(std::span<const std::span<const float>> rows);

  [[nodiscard]] const std::vector<Hypothesis>& live() const noexcept { return live_; }
  /// The hypotheses, best first; at most `width`. When the search is over.
  [[nodiscard]] std::vector<Hypothesis> results() const;

 private:
  [[nodiscard]] double score(double logprob, std::size_t length) const;
  [[nodiscard]] bool is_long() const;

  BeamOptions options_;
  std::vector<Hypothesis> live_, finished_;
};

}  // namespace serving
