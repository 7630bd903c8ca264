// Fuzzes Hugging Face checkpoints: the headers of safetensors files, config.json and the index of shards.
#include <filesystem>

#include "checkpoint_checks.h"
#include "model/config.h"
#include "model/safetensors.h"

using namespace serving;

// An odd first byte: one safetensors file. Else sections of a length (u16) and bytes: config.json, the index of shards
// (none if it is empty), model.safetensors.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const pagedkv::fuzz::ScratchFolder folder;
  pagedkv::fuzz::Input input(data, size);
  try {
    if (input.below(2) == 1) {
      SafetensorsFile file(folder.write("alone.safetensors", input.rest()));
      for (const std::uint64_t elements : {0U, 1U, 2U, 6U}) {
        try {
          pagedkv::fuzz::check(file.read("w", elements).size() == elements, "a tensor has the size that was asked for");
        } catch (const LoadError&) {
          // refused, as it may be
        }
      }
      return 0;
    }
    folder.write("config.json", input.take(input.number<std::uint16_t>()));
    const std::string_view index = input.take(input.number<std::uint16_t>());
    const std::string index_path = folder.write("model.safetensors.index.json", index);
    if (index.empty()) std::filesystem::remove(index_path);
    folder.write("model.safetensors", input.rest());
    fuzzing::read_tensors(*open_safetensors(folder.path()));
  } catch (const LoadError&) {
    // refused, as it may be
  }
  return 0;
}
