// Streams a file through liblzma when it is compressed, and cuts it into lines.
#include "replay/line_reader.h"

#include <fmt/format.h>
#include <lzma.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "tool.h"

namespace pagedkv::tool {
namespace {

constexpr std::size_t kChunkBytes = 256 << 10;
constexpr std::size_t kMaxLineBytes = 16 << 20;
/// A hostile header may ask for a dictionary of 4 GiB; `xz -9` needs 65 MiB.
constexpr std::uint64_t kMaxDecoderBytes = 256 << 20;
constexpr std::array<std::uint8_t, 6> kXzMagic = {0xFD, '7', 'z', 'X', 'Z', 0};

}  // namespace

struct LineReader::Input {
  explicit Input(std::FILE* opened) : file(opened), raw(kChunkBytes) {}
  ~Input() {
    if (compressed) lzma_end(&decoder);
    std::fclose(file);
  }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  std::FILE* file;
  std::vector<std::uint8_t> raw;
  lzma_stream decoder = LZMA_STREAM_INIT;
  bool compressed = false;
  bool ended = false;
};

LineReader::LineReader(std::string path) : path_(std::move(path)) {
  std::FILE* file = std::fopen(path_.c_str(), "rb");
  if (file == nullptr) throw BadInput(fmt::format("cannot open {}: {}", path_, std::strerror(errno)));
  input_ = std::make_unique<Input>(file);
  const std::size_t num_bytes = std::fread(input_->raw.data(), 1, kXzMagic.size(), file);
  if (num_bytes == kXzMagic.size() && std::memcmp(input_->raw.data(), kXzMagic.data(), num_bytes) == 0) {
    if (lzma_stream_decoder(&input_->decoder, kMaxDecoderBytes, LZMA_CONCATENATED) != LZMA_OK) throw std::bad_alloc();
    input_->compressed = true;
  }
  // Seeking back would fail on a pipe: the first bytes go where reading would have put them.
  if (input_->compressed) {
    input_->decoder.next_in = input_->raw.data();
    input_->decoder.avail_in = num_bytes;
  } else {
    for (std::size_t i = 0; i < num_bytes; ++i) buffer_.push_back(static_cast<char>(input_->raw[i]));
  }
}

LineReader::~LineReader() = default;

/// Appends more text to the buffer; false at the end of the file.
bool LineReader::fill() {
  Input& in = *input_;
  if (in.ended) return false;
  buffer_.erase(0, begin_);
  begin_ = 0;
  const std::size_t held = buffer_.size();
  buffer_.resize(held + kChunkBytes);
  if (!in.compressed) {
    const std::size_t got = std::fread(buffer_.data() + held, 1, kChunkBytes, in.file);
    buffer_.resize(held + got);
    if (std::ferror(in.file) != 0) throw BadInput(fmt::format("cannot read {}: {}", path_, std::strerror(errno)));
    in.ended = got == 0;
    return got != 0;
  }
  in.decoder.next_out = reinterpret_cast<std::uint8_t*>(buffer_.data() + held);
  in.decoder.avail_out = kChunkBytes;
  while (in.decoder.avail_out == kChunkBytes && !in.ended) {
    if (in.decoder.avail_in == 0) {
      in.decoder.next_in = in.raw.data();
      in.decoder.avail_in = std::fread(in.raw.data(), 1, in.raw.size(), in.file);
    }
    const lzma_action action = std::feof(in.file) != 0 ? LZMA_FINISH : LZMA_RUN;
    const lzma_ret status = lzma_code(&in.decoder, action);
    in.ended = status == LZMA_STREAM_END;
    if (status != LZMA_OK && status != LZMA_STREAM_END) {
      const char* what = status == LZMA_BUF_ERROR        ? "the compressed data ends early"
                         : status == LZMA_MEMLIMIT_ERROR ? "the compressed data asks for too much memory"
                                                         : "the compressed data is damaged";
      throw BadInput(fmt::format("{}:{}: {}", path_, line_number_ + 1, what));
    }
  }
  const std::size_t got = kChunkBytes - in.decoder.avail_out;
  buffer_.resize(held + got);
  return got != 0;
}

bool LineReader::next(std::string_view& line) {
  std::size_t scanned = begin_;
  std::size_t end;
  while ((end = buffer_.find('\n', scanned)) == std::string::npos) {
    scanned = buffer_.size() - begin_;  // fill() moves the rest to the front
    if (scanned > kMaxLineBytes) {
      ++line_number_;
      fail("the line is longer than 16 MiB");
    }
    if (!fill()) {
      if (begin_ == buffer_.size()) return false;
      end = buffer_.size();
      break;
    }
  }
  line = std::string_view(buffer_).substr(begin_, end - begin_);
  begin_ = end + (end < buffer_.size() ? 1 : 0);
  if (line.ends_with('\r')) line.remove_suffix(1);
  ++line_number_;
  return true;
}

void LineReader::fail(const std::string& what) const {
  throw BadInput(fmt::format("{}:{}: {}", path_, line_number_, what));
}

}  // namespace pagedkv::tool
