// The part of llguidance's C interface that Slipway calls, as parser/llguidance.h of version 1.9 declares it, found in the
// extension module of its Python wheel (https://github.com/guidance-ai/llguidance, MIT).
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace slipway::llg {

struct Tokenizer;
struct Matcher;

struct TokenizerInit {  // LlgTokenizerInitV2
  size_t struct_size = sizeof(TokenizerInit);
  uint32_t vocab_size = 0;
  uint32_t tok_eos = ~0u;  // none
  const uint32_t* token_lens = nullptr;
  const uint8_t* token_bytes = nullptr;
  const char* tokenizer_json = nullptr;
  bool tokenize_assumes_string = false;
  size_t (*tokenize)(const void*, const uint8_t*, size_t, uint32_t*, size_t) = nullptr;
  bool use_approximate_greedy_tokenize_fn = false;
  const void* tokenize_user_data = nullptr;
  const char* const* slices = nullptr;
  const uint32_t* tok_eos_extra = nullptr;
  uint32_t tok_eos_extra_count = 0;
};

struct ParserLimits {  // 0: the library's default
  size_t max_items_in_row = 0;
  uint64_t initial_lexer_fuel = 0;
  uint64_t step_lexer_fuel = 0;
  size_t step_max_items = 0;
  size_t max_lexer_states = 0;
  size_t max_grammar_size = 0;
  bool precompute_large_lexemes = false;
  bool verbose_errors = false;
};

struct ConstraintInit {
  const Tokenizer* tokenizer = nullptr;
  uint32_t log_buffer_level = 0;
  uint32_t log_stderr_level = 0;
  bool ff_tokens_ok = false;
  bool backtrack_ok = false;
  ParserLimits limits;
};

// Functions of the library, each the member of its name without `llg_`. Loaded for the life of the process.
struct Library {
  explicit Library(const std::string& path);  // throws std::runtime_error

  const char* (*get_version)();
  void (*constraint_init_set_defaults)(ConstraintInit*, const Tokenizer*);
  Tokenizer* (*new_tokenizer_v2)(const TokenizerInit*, char* error, size_t error_bytes);
  void (*free_tokenizer)(Tokenizer*);
  Matcher* (*new_matcher)(const ConstraintInit*, const char* kind, const char* text);
  Matcher* (*clone_matcher)(const Matcher*);
  void (*free_matcher)(Matcher*);
  const char* (*matcher_get_error)(Matcher*);
  int32_t (*matcher_compute_mask_into)(Matcher*, uint32_t* mask, size_t mask_bytes);
  int32_t (*matcher_consume_token)(Matcher*, uint32_t token);
  int32_t (*matcher_validate_tokens)(Matcher*, const uint32_t* tokens, size_t count);
  int32_t (*matcher_rollback)(Matcher*, size_t count);
  bool (*matcher_is_accepting)(Matcher*);
  bool (*matcher_is_stopped)(const Matcher*);
};

}  // namespace slipway::llg
