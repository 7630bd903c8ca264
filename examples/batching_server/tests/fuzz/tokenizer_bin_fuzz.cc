// Fuzzes the tokenizer.bin of llama2.c: a tokenizer or a LoadError.
#include "model/config.h"
#include "tokenizer_checks.h"

using namespace serving;

// Two bytes: the size of the vocabulary. One: bytes of text. The text, then the file.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const pagedkv::fuzz::ScratchFolder folder;
  pagedkv::fuzz::Input input(data, size);
  const std::uint32_t vocab_size = input.number<std::uint16_t>();
  const std::string_view text = input.take(input.number<std::uint8_t>());
  try {
    fuzzing::encode_and_decode(*open_llama2c_tokenizer(folder.write("tokenizer.bin", input.rest()), vocab_size), text);
  } catch (const LoadError&) {
    // refused, as it may be
  }
  return 0;
}
