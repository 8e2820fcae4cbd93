// runtime/manifest.py's Manifest -> Plan, read by attribute; the GIL is held.
#pragma once
#include <nanobind/nanobind.h>

#include <string>

#include "plan.hpp"

namespace slipway {

Plan plan_from_python(nanobind::handle manifest, const std::string& directory, int32_t num_blocks);

}  // namespace slipway
