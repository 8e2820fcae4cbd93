// Kernels with bugs, which the sanitizers must find: they watch kernels and not only the runtime.
#include "slipway/abi.hpp"

using slipway::Call;

extern "C" {

[[gnu::visibility("default")]] void write_past_the_stack(const Call& call) {
  float row[16];
  float* volatile hidden = row;  // UBSan must not know whose bound it is
  float* written = hidden;
  for (int32_t i = 0; i <= 16 + call.rank; ++i) written[i] = 0;
}

[[gnu::visibility("default")]] void overflow_a_sum(const Call& call) {
  volatile int32_t sum = INT32_MAX;
  sum = sum + call.rows;
}

[[gnu::visibility("default")]] void read_past_its_buffer(const Call& call) {
  constexpr int32_t max_batch_tokens = 200;  // of test_engine.py's recipe
  volatile std::byte seen = call.outputs[0].data[max_batch_tokens * call.outputs[0].row_bytes];
  static_cast<void>(seen);
}
}
