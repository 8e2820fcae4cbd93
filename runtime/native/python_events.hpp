// Requests out of Python, events into Python; the GIL is held.
#pragma once
#include <nanobind/nanobind.h>

#include <vector>

#include "detokenizer.hpp"
#include "sampling_params.hpp"
#include "request.hpp"

namespace slipway {

SamplingParams params_from_python(nanobind::handle params);        // of runtime/sampling.py, nothing left to None that has a default
Vocabulary vocabulary_from_python(nanobind::handle vocabulary);    // of runtime/vocabulary.py
nanobind::list events_to_python(const std::vector<Event>& events);  // tuples, as runtime/dispatcher.py takes them

}  // namespace slipway
