// Fuzzes llama2.c checkpoints: a model or a LoadError.
#include "checkpoint_checks.h"
#include "model/config.h"

using namespace serving;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const pagedkv::fuzz::ScratchFolder folder;
  pagedkv::fuzz::Input input(data, size);
  try {
    fuzzing::read_tensors(*open_llama2c(folder.write("model.bin", input.rest())));
  } catch (const LoadError&) {
    // refused, as it may be
  }
  return 0;
}
