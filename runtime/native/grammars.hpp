// Grammars as text -> grammars that constrain sequences, by llguidance.
//
// llguidance counts its work and gives up with an error, at compiling and at each step; what escapes its count at compiling
// is for the caller to try out elsewhere first: runtime/grammar_trial.py.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "constraint.hpp"

namespace slipway {

// Of one vocabulary. Any thread; what it made may outlive it.
class GrammarCompiler {
 public:
  // library: path of llguidance's extension module. pieces, special: of runtime/vocabulary.py; vocab_size: of the logits.
  // Throws std::runtime_error.
  GrammarCompiler(const std::string& library, const std::vector<std::string>& pieces, const std::vector<bool>& special, int32_t vocab_size);

  // kind: json_schema, regex or lark. Throws std::invalid_argument for a text that is not one, or too much of one.
  std::shared_ptr<const Grammar> compile(const std::string& kind, const std::string& text) const;

  struct Shared;

 private:
  std::shared_ptr<const Shared> shared_;
};

}  // namespace slipway
