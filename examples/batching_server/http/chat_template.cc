// Two published formats, and one for everything else.
#include "http/chat_template.h"

namespace serving {
namespace {

class PromptBuilder {
 public:
  explicit PromptBuilder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
    if (const auto first = tokenizer.bos()) tokens_.push_back(*first);
  }
  PromptBuilder& text(const std::string& text) {
    const auto more = tokenizer_.encode(text, SpecialText::kIsPlain);
    tokens_.insert(tokens_.end(), more.begin(), more.end());
    return *this;
  }
  PromptBuilder& special(const char* name) {
    if (const auto token = tokenizer_.special(name)) tokens_.push_back(*token);
    return *this;
  }
  [[nodiscard]] std::vector<Token> take() { return std::move(tokens_); }

 private:
  const Tokenizer& tokenizer_;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> encode_chat(const Tokenizer& tokenizer, const std::vector<ChatMessage>& messages) {
  PromptBuilder prompt(tokenizer);
  if (tokenizer.special("<|start_header_id|>")) {
    const auto header = [&](const std::string& role) {
      prompt.special("<|start_header_id|>").text(role).special("<|end_header_id|>").text("\n\n");
    };
    for (const ChatMessage& message : messages) {
      header(message.role);
      prompt.text(message.content).special("<|eot_id|>");
    }
    header("assistant");
  } else if (tokenizer.special("<|im_start|>")) {
    for (const ChatMessage& message : messages) {
      prompt.special("<|im_start|>").text(message.role + "\n" + message.content).special("<|im_end|>").text("\n");
    }
    prompt.special("<|im_start|>").text("assistant\n");
  } else {
    std::string text;
    for (const ChatMessage& message : messages) text += (text.empty() ? "" : "\n") + message.content;
    prompt.text(text);
  }
  return prompt.take();
}

}  // namespace serving
