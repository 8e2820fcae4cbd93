// runtime/manifest.py's Manifest -> Plan, read by attribute; the GIL is held. emulated: the seed, where a GPU is emulated.
#pragma once
#include <nanobind/nanobind.h>

#include <optional>
#include <string>

#include "plan.hpp"

namespace slipway {

Plan plan_from_python(nanobind::handle manifest, const std::string& directory, int32_t num_blocks, std::optional<uint64_t> emulated);

// runtime/manifest.py's Matmul, or that of plugins/plugin.py.
MatmulSpec matmul_from_python(nanobind::handle from);

}  // namespace slipway
