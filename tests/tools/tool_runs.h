// Runs the program inside a test and catches what it says.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tool.h"

namespace pagedkv::tool {

struct Ran {
  int code;
  std::string out, err;
};

inline Ran run(const std::vector<std::string>& arguments) {
  std::vector<const char*> argv = {"pagedkv"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int code = run_tool(static_cast<int>(argv.size()), argv.data());
  return {code, testing::internal::GetCapturedStdout(), testing::internal::GetCapturedStderr()};
}

}  // namespace pagedkv::tool
