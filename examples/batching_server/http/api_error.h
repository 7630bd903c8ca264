// ApiError: a refusal in the shape that OpenAI's clients understand.
#pragma once

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

namespace serving {

using Json = nlohmann::json;

/// Thrown while a request is read and checked, and answered by its status and JSON.
struct ApiError : std::runtime_error {
  int status;
  std::string type, code, param;  ///< `code` and `param` may be empty: then they are null.

  ApiError(int status_, std::string type_, const std::string& message, std::string code_ = {}, std::string param_ = {})
      : std::runtime_error(message),
        status(status_),
        type(std::move(type_)),
        code(std::move(code_)),
        param(std::move(param_)) {}

  [[nodiscard]] Json to_json() const {
    const auto or_null = [](const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); };
    return {{"error", {{"message", what()}, {"type", type}, {"param", or_null(param)}, {"code", or_null(code)}}}};
  }
};

/// A request that can never work, with the parameter that is wrong.
inline ApiError invalid_request(const std::string& message, const std::string& param = {}) {
  return {400, "invalid_request_error", message, {}, param};
}

}  // namespace serving
