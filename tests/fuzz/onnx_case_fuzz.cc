// Fuzzes what `pagedkv conformance` reads: case.json and the .npy files that it names.
#include <string>

#include "conformance/npy.h"
#include "conformance/onnx_case.h"
#include "fuzz/fuzz_input.h"
#include "tool.h"

using namespace pagedkv;

namespace {

void read_array(const fuzz::ScratchFolder& folder, std::string_view bytes) {
  const tool::NpyArray array = tool::read_npy(folder.write("array.npy", bytes));
  std::size_t elements = 1;
  for (const std::int64_t extent : array.shape) elements *= static_cast<std::size_t>(extent);
  fuzz::check(elements == array.num_elements(), "an array has as many elements as its shape says");
}

}  // namespace

// An odd first byte: one .npy file. Else sections of a length (u16) and bytes: case.json, then 0.npy, 1.npy, ...
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::ScratchFolder folder;
  fuzz::Input input(data, size);
  try {
    if (input.below(2) == 1) {
      read_array(folder, input.rest());
      return 0;
    }
    folder.write("case.json", input.take(input.number<std::uint16_t>()));
    for (char name = '0'; name <= '9'; ++name) {
      const std::string file = {name, '.', 'n', 'p', 'y'};
      folder.write(file.c_str(), input.take(input.number<std::uint16_t>()));
    }
    const tool::OnnxCase test_case = tool::load_case(folder.path());
    if (!test_case.unsupported.empty()) return 0;
    fuzz::check(test_case.q_heads % test_case.kv_heads == 0, "query heads are a multiple of K/V heads");
    fuzz::check(test_case.kv_lens.size() == static_cast<std::size_t>(test_case.batch), "every sequence has a length");
    const auto covers = [](const tool::Rows& rows) {
      return rows.data.size() == static_cast<std::size_t>(rows.num_elements()) * size_of(rows.dtype);
    };
    fuzz::check(covers(test_case.q) && covers(test_case.k) && covers(test_case.v) && covers(test_case.y),
                "rows hold as many bytes as their shape says");
  } catch (const tool::BadInput& error) {
    fuzz::check(std::string_view(error.what()).find("/pagedkv-") != std::string_view::npos, "an error names its file");
  }
  return 0;
}
