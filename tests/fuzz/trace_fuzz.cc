// Fuzzes the parsers of request traces, plain and xz: whatever the bytes, sessions or BadInput.
#include <string>

#include "fuzz/fuzz_input.h"
#include "replay/session.h"
#include "replay/trace.h"
#include "tool.h"

using namespace pagedkv;

// The first byte says the format, all others are the file.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::ScratchFolder folder;
  fuzz::Input input(data, size);
  const auto format = static_cast<tool::TraceFormat>(input.below(3));
  const std::string path = folder.write("trace", input.rest());
  try {
    const auto source = tool::open_trace(path, format, 60);
    tool::Session session;
    double last_s = 0;
    for (int i = 0; i < 10'000 && source->next(session); ++i) {
      fuzz::check(!session.turns.empty() && session.block_tokens != 0, "a session has turns and a block size");
      fuzz::check(session.start_s >= last_s, "sessions are in order of their starts");
      last_s = session.start_s;
      double last_offset_s = 0;
      for (const tool::Turn& turn : session.turns) {
        fuzz::check(turn.offset_s >= last_offset_s, "turns are in order of their arrival");
        last_offset_s = turn.offset_s;
        fuzz::check(turn.known_tokens <= turn.total_tokens(), "no more tokens are known than there are");
        std::uint64_t blocks = 0;
        for (const tool::BlockRun& run : turn.blocks) blocks += run.count;
        fuzz::check(blocks * session.block_tokens >= turn.known_tokens, "blocks cover the known tokens");
      }
    }
  } catch (const tool::BadInput& error) {
    fuzz::check(std::string_view(error.what()).starts_with(path), "an error names its file");
  }
  return 0;
}
