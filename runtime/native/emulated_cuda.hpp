// What other libraries of an emulated GPU do on its streams.
#pragma once
#include <functional>

#include "cuda_api.hpp"

namespace slipway {

// Done when the stream is waited for; a node of the graph while one is captured.
CuResult emulated_enqueue(CuStream stream, std::function<CuResult()> work);

}  // namespace slipway
