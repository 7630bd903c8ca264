// What the HTTP server is made of, by itself: threads that cannot be had, text held back for a stop string.
#include <gtest/gtest.h>

#include <cerrno>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "http/connection_threads.h"
#include "http/text_assembler.h"
#include "tests/test_files.h"

namespace serving {
namespace {

TEST(ConnectionThreads, ConnectionsAreServedByTheThreadsThatCanBeHad) {
  for (int had : {0, 1}) {
    int served = 0;
    {
      int left = had;
      ConnectionThreads threads(8, [&](std::function<void()> run) {
        if (left-- <= 0) throw std::system_error(EAGAIN, std::generic_category());
        return std::thread(std::move(run));
      });
      std::mutex mutex;
      for (int i = 0; i < 20; ++i) {
        threads.enqueue([&] {
          const std::lock_guard lock(mutex);
          ++served;
        });
      }
      threads.shutdown();
    }
    EXPECT_EQ(served, 20) << had << " threads";
  }
}

TEST(TextAssembler, HoldsBackWhatMayBecomeAStopString) {
  const auto tokenizer = byte_tokenizer();
  const std::vector<std::string> stops = {"END", "\n\n"};
  TextAssembler assembler(*tokenizer, std::nullopt, stops);
  const auto push = [&](const std::string& text) {
    std::string out;
    for (Token token : tokenizer->encode(text, SpecialText::kIsPlain)) out += assembler.push(token);
    return out;
  };
  EXPECT_EQ(push("aE"), "a");
  EXPECT_EQ(push("N"), "");
  EXPECT_EQ(push("x"), "ENx");  // Not a stop after all.
  EXPECT_EQ(push("yEN"), "y");
  EXPECT_FALSE(assembler.is_stopped());
  EXPECT_EQ(push("Dzzz"), "");
  EXPECT_TRUE(assembler.is_stopped());
  EXPECT_EQ(assembler.finish(), "");
}

TEST(TextAssembler, GivesTheHeldBackTextAtTheEnd) {
  const auto tokenizer = byte_tokenizer();
  const std::vector<std::string> stops = {"END"};
  TextAssembler assembler(*tokenizer, std::nullopt, stops);
  for (Token token : tokenizer->encode("xEN", SpecialText::kIsPlain)) static_cast<void>(assembler.push(token));
  EXPECT_EQ(assembler.finish(), "EN");
}

}  // namespace
}  // namespace serving
