// engine.json as the executor needs it; runtime/manifest_checks.py has checked every index and range in it.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace slipway {

struct Limits {
  int32_t max_sequence_length, max_batch_tokens, max_sequences, max_logit_rows;
};

struct OperandSpec {
  int64_t arena_offset, row_bytes;
};

enum class Device { host, gpu, emulated_gpu };

// blocks = fixed + ceil(times * count / per), and one for each sequence if each_sequence
struct ExtentSpec {
  enum class Of { nothing, rows, tokens, sequences } of;
  int64_t times, per, fixed;
  bool each_sequence;
};

// results[rows, outputs] = factors[rows, inputs] W[outputs, inputs]^T; W is the step's weight of that number. Sums are float32. Scales of e2m1
// lie behind W and behind the source's rows (plugins/plugin.py).
struct MatmulSpec {
  enum class Number { bf16, f32, e4m3, e2m1 };
  struct ScratchRows {
    int64_t offset, row_bytes;
  };
  int64_t outputs, inputs, weight_columns;  // of a row of W
  Number factors, results;
  std::optional<ScratchRows> source, destination;  // none: the step's first input, its first output
  int32_t weight;
  bool adds;  // results += the step's second input
};

struct LaunchSpec {
  std::string function;
  int32_t threads;
  ExtentSpec grid[3];
  int32_t shared_bytes;
  int32_t min_rows;
  std::optional<int32_t> max_rows;
  int32_t min_new_tokens;
  int32_t min_sequences;
  std::optional<int32_t> max_sequences;
  std::optional<MatmulSpec> matmul;  // cuBLASLt's, instead of a function
};

struct StepSpec {
  std::string name;    // for messages
  std::string symbol;  // empty for a segment
  bool logit_rows;     // counts its rows in wanted logits, not in tokens
  std::vector<OperandSpec> inputs, outputs;
  std::vector<int32_t> weights;
  std::optional<int32_t> kv_layer;
  std::string image;   // path of the compiled functions of `launches`; those are a GPU's
  std::vector<LaunchSpec> launches;
};

struct KvSpec {
  int32_t layers, block_size, num_blocks;
  int64_t block_bytes;  // of one layer
};

struct Plan {
  int64_t arena_bytes, shared_scratch_bytes, local_scratch_bytes;
  int32_t vocab_size;
  OperandSpec logits;
  std::optional<OperandSpec> drawn;  // int32 [rows]: a GPU draws tokens
  KvSpec kv;
  Limits limits;
  std::vector<StepSpec> steps;
  std::string library;  // path
  Device device = Device::host;
  bool begins_early = false;  // a kernel may begin before the one before has ended
  uint64_t seed = 0;      // of an emulated GPU: shuffles its threads; 0: they run in order
  int64_t counters = 0;   // of 32 bits, the most that a step of a GPU has
};

}  // namespace slipway
