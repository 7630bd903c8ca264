// Fuzzes Hugging Face's tokenizer.json: a tokenizer or a LoadError.
#include "model/config.h"
#include "tokenizer_checks.h"

using namespace serving;

// A byte: bytes of text. The text, then the file.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const pagedkv::fuzz::ScratchFolder folder;
  pagedkv::fuzz::Input input(data, size);
  const std::string_view text = input.take(input.number<std::uint8_t>());
  try {
    fuzzing::encode_and_decode(*open_hf_tokenizer(folder.write("tokenizer.json", input.rest())), text);
  } catch (const LoadError&) {
    // refused, as it may be
  }
  return 0;
}
