// What holds of every checkpoint that opens.
#pragma once

#include "fuzz/fuzz_input.h"
#include "model/tensor_source.h"

namespace serving::fuzzing {

/// Reads all tensors of the first and the last layer. Each has the size that the configuration says, or LoadError.
inline void read_tensors(TensorSource& source) {
  const ModelConfig& config = source.config();
  check_config(config, "accepted checkpoint");
  for (int i = 0; i <= static_cast<int>(TensorRole::kClassifier); ++i) {
    const auto role = static_cast<TensorRole>(i);
    if (role == TensorRole::kClassifier && config.tied_classifier) continue;
    for (const std::uint32_t layer : {0U, config.num_layers - 1}) {
      pagedkv::fuzz::check(source.read(role, layer).size() == shape_of(role, config).num_elements(),
                           "a tensor has the size that the configuration says");
    }
  }
}

}  // namespace serving::fuzzing
