// The arguments of calls of the C interface, drawn from the fuzzer's bytes: mostly sound, now and then absurd.
//
// Arrays are exactly as long as the call says, each in an allocation of its own.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "fuzz/fuzz_input.h"
#include "pagedkv/c/pagedkv.h"

namespace pagedkv::fuzz {

inline constexpr std::uint64_t kUntouched = 0xA5A5'A5A5'A5A5'A5A5;

enum Kind { kCache, kSequence, kStep, kPool, kStore, kPlan, kDense, kNumKinds };
inline constexpr std::array<pagedkv_status (*)(std::uint64_t), kNumKinds> kClose = {
    pagedkv_cache_close, pagedkv_sequence_close, pagedkv_step_close, pagedkv_pool_close,
    pagedkv_store_close, pagedkv_plan_close,     pagedkv_dense_close};

inline pagedkv_status known(pagedkv_status status) {
  check(status >= PAGEDKV_OK && status <= PAGEDKV_CORRUPT, "a status is one of those that exist");
  check(pagedkv_last_error() != nullptr && *pagedkv_status_name(status) != '\0', "a status has a name");
  return status;
}

/// A result that is written on success only.
template <class T>
class Output {
 public:
  Output() { std::memset(&value_, 0xA5, sizeof value_); }
  T* to() { return &value_; }
  T checked(pagedkv_status status) {
    T untouched;
    std::memset(&untouched, 0xA5, sizeof untouched);
    check(known(status) == PAGEDKV_OK || std::memcmp(&value_, &untouched, sizeof value_) == 0,
          "a call that fails writes no result");
    return value_;
  }

 private:
  T value_;
};

/// Draws the arguments. What it draws lives until the next call.
class Arguments {
 protected:
  explicit Arguments(Input& input) : input_(input) {}

  /// Mostly a live handle of the kind; else a closed one, one of another kind, or any number.
  std::uint64_t handle(Kind kind) {
    const std::size_t choice = input_.below(16);
    const std::vector<std::uint64_t>& live = live_[kind];
    if (choice < 13) return live.empty() ? 0 : live[input_.below(live.size())];
    if (choice == 13) return stale_.empty() ? 0 : stale_[input_.below(stale_.size())];
    if (choice == 14) {
      const auto& other = live_[input_.below(kNumKinds)];
      return other.empty() ? 0 : other[input_.below(other.size())];
    }
    return input_.number<std::uint64_t>();
  }
  std::uint64_t count(std::size_t usual) {
    return input_.rarely(24) ? static_cast<std::uint64_t>(input_.odd_number()) : input_.below(usual);
  }
  std::uint32_t count32(std::size_t usual) { return static_cast<std::uint32_t>(count(usual)); }

  /// Memory that lives until the next call, exactly as long as said.
  template <class T>
  T* array(std::size_t length) {
    blocks_.push_back(std::make_unique<std::byte[]>(length * sizeof(T)));
    return reinterpret_cast<T*>(blocks_.back().get());
  }
  const std::int32_t* numbers(std::size_t length, std::size_t below) {
    auto* const values = array<std::int32_t>(length);
    for (std::size_t i = 0; i < length; ++i) values[i] = static_cast<std::int32_t>(count32(below));
    return values;
  }
  /// Few tokens, so that prompts begin alike.
  const std::int32_t* tokens(std::size_t length) {
    auto* const values = array<std::int32_t>(length);
    const std::uint8_t seed = input_.number<std::uint8_t>();
    for (std::size_t i = 0; i < length; ++i) values[i] = static_cast<std::int32_t>((seed >> (i / 8 % 8)) & 1);
    return values;
  }
  pagedkv_bytes text() {
    const std::size_t length = input_.below(4);
    char* const bytes = array<char>(length);
    std::memset(bytes, 'a' + static_cast<int>(input_.below(3)), length);
    return {length == 0 ? nullptr : bytes, length};
  }
  pagedkv_bytes target() {
    if (!input_.rarely(8)) return {nullptr, 0};
    const char* name = "";
    pagedkv_target_at(input_.below(6), &name, nullptr, nullptr);
    return {name, std::strlen(name)};
  }
  /// [elements] of 0.5 in the dtype, or one element more or fewer.
  pagedkv_tensor tensor(std::size_t elements) {
    if (input_.rarely(24)) elements += input_.below(2) == 0 ? 1 : std::size_t(0) - (elements != 0 ? 1 : 0);
    if (elements > 1 << 16) elements = 1 << 16;  // more than any call of these shapes takes: it is refused
    const auto dtype = static_cast<pagedkv_dtype>(input_.rarely(32) ? input_.number<std::uint32_t>() : input_.below(3));
    const std::size_t bytes = dtype == PAGEDKV_F32 ? 4 : 2;
    auto* const data = array<std::byte>(elements * bytes);
    const float half = 0.5F;
    for (std::size_t i = 0; i < elements; ++i) {
      const std::uint16_t bits = dtype == PAGEDKV_F16 ? 0x3800 : 0x3F00;
      if (bytes == 4)
        std::memcpy(data + i * 4, &half, 4);
      else
        std::memcpy(data + i * 2, &bits, 2);
    }
    return {data, elements, dtype};
  }
  pagedkv_const_tensor const_tensor(std::size_t elements) {
    const pagedkv_tensor made = tensor(elements);
    return {made.data, made.num_elements, made.dtype};
  }
  /// A struct as a caller of this version passes it, or of another: with the memory that its struct_size says.
  template <class T>
  T* sized(const T& value) {
    std::size_t size = input_.rarely(48) ? count(300) : sizeof(T);
    const std::size_t bytes = size > 1 << 16 ? sizeof(T) : std::max(size, sizeof(T));  // beyond, it is not read
    auto* const memory = array<std::byte>(bytes);
    std::memcpy(memory, &value, sizeof(T));
    std::memcpy(memory, &size, sizeof size);
    if (bytes > sizeof(T) && input_.rarely(4)) memory[bytes - 1] = std::byte{1};  // a member of the future
    return reinterpret_cast<T*>(memory);
  }

  pagedkv_attention_variant variant(std::uint32_t heads) {
    pagedkv_attention_variant made{};
    if (input_.rarely(4)) made.window = count32(40);
    if (input_.rarely(4)) made.logits_soft_cap = input_.rarely(4) ? input_.number<float>() : 20;
    if (input_.rarely(4)) made.sm_scale = input_.rarely(4) ? input_.number<float>() : 0.5F;
    made.non_causal = input_.rarely(8) ? 1 : 0;
    const std::size_t length = input_.rarely(16) ? input_.below(9) : std::min(heads, 64U);
    if (input_.rarely(4)) made.sinks = array<float>(length), made.num_sinks = length;
    if (input_.rarely(4)) made.alibi_slopes = array<float>(length), made.num_alibi_slopes = length;
    return made;
  }

  /// The shape that all caches and plans of a case have unless a number is odd.
  struct Shape {
    std::uint32_t layers, q_heads, kv_heads, dim, v_dim;
  };
  Shape shape() {
    Shape s{2, 4, 2, 8, 0};
    if (input_.rarely(3))
      s = {input_.between(1, 3), input_.between(1, 6), input_.between(1, 3), input_.between(1, 20), 0};
    if (input_.rarely(4)) s.v_dim = input_.between(1, 12);
    if (input_.rarely(32)) s.layers = count32(5);
    if (input_.rarely(32)) s.q_heads = count32(5);
    if (input_.rarely(32)) s.kv_heads = count32(5);
    if (input_.rarely(32)) s.dim = count32(5);
    return s;
  }

  Input& input_;
  std::array<std::vector<std::uint64_t>, kNumKinds> live_;
  std::vector<std::uint64_t> stale_;
  std::vector<std::unique_ptr<std::byte[]>> blocks_;  // of this call
};

}  // namespace pagedkv::fuzz
