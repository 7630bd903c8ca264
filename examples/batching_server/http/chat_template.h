// Chat messages as the prompt that a model was trained on.
#pragma once

#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace serving {

struct ChatMessage {
  std::string role, content;
};

/// The prompt that asks for the assistant's next message.
///
/// Llama 3's headers or ChatML's marks if the tokenizer has them; else plain text, which suits models that were never
/// trained to chat. What a message contains is always plain text: nobody can forge another's turn.
std::vector<Token> encode_chat(const Tokenizer& tokenizer, const std::vector<ChatMessage>& messages);

}  // namespace serving
