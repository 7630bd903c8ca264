// What a replay serves: sessions of one or more requests, one at a time from a trace or a generator.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace pagedkv::tool {

/// Block ids first, first + 1, .. of a prompt. Equal ids hold equal tokens behind equal prefixes.
struct BlockRun {
  std::uint64_t first = 0;
  std::uint32_t count = 0;
};

/// One request of a session.
struct Turn {
  double offset_s = 0;  ///< Arrival, from the start of the session; not decreasing.
  std::uint32_t prompt_tokens = 0;
  std::uint32_t output_tokens = 0;
  /// What the first `known_tokens` tokens of prompt and output are, in blocks of Session::block_tokens, the last of
  /// which may be cut short. All other tokens are the request's own.
  std::vector<BlockRun> blocks;
  std::uint32_t known_tokens = 0;

  [[nodiscard]] std::uint64_t total_tokens() const { return std::uint64_t{prompt_tokens} + output_tokens; }
};

/// Requests that come one after another: each arrives when its time has come and the one before is finished.
struct Session {
  double start_s = 0;
  std::uint32_t block_tokens = 1;
  std::vector<Turn> turns;  ///< At least one.
};

/// A stream of sessions in order of their starts. Holds one session at a time, never the whole trace.
class SessionSource {
 public:
  virtual ~SessionSource() = default;
  /// The next session, or false at the end. Throws BadInput on a malformed trace, with file and line.
  virtual bool next(Session& session) = 0;
};

/// Opens the same stream from its beginning, each time that it is called.
using OpenSource = std::function<std::unique_ptr<SessionSource>()>;

/// What one pass over a source finds out.
struct SourceSummary {
  std::uint64_t sessions = 0, requests = 0;
  std::uint64_t prompt_tokens = 0, output_tokens = 0;
  std::uint64_t longest_tokens = 0;  ///< Longest prompt + output of a request.
};
SourceSummary summarize(SessionSource& source);

/// What a prefix cache without limits would find, if each request were computed before the next arrives.
struct IdealPrefixHits {
  std::uint64_t prompt_tokens = 0;  ///< Of all requests, those included that a memory is too small for.
  std::uint64_t tokens = 0;         ///< Of them, in blocks whose whole prefix has been there before.
  std::uint64_t last_tokens = 0;    ///< Prompts found whole, of which a cache must leave the last token to compute.
};
/// Cost: memory for every block id of the source.
IdealPrefixHits ideal_prefix_hits(SessionSource& source);

/// The first `max_requests` requests of a source; 0 = all.
std::unique_ptr<SessionSource> limit_requests(std::unique_ptr<SessionSource> source, std::uint64_t max_requests);

}  // namespace pagedkv::tool
