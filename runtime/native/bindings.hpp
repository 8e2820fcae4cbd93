// What the parts of the extension module share.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <vector>

#include "executor.hpp"

namespace slipway {

void bind_executor(nanobind::module_& module);
void bind_engine(nanobind::module_& module);
void bind_gpu(nanobind::module_& module);
void bind_grammars(nanobind::module_& module);
void bind_core(nanobind::module_& module);  // bindings_testing.cpp

SegmentRunner python_segments(nanobind::object run);  // run(step, input_ids, positions, logit_rows)
std::vector<std::shared_ptr<const Mapping>> mappings(nanobind::handle list);

// The arena, for segments: they belong to the executor, so that the view must not own it in turn.
using ArenaView = nanobind::ndarray<nanobind::numpy, uint8_t>;
ArenaView arena_of(Executor& executor);

}  // namespace slipway
