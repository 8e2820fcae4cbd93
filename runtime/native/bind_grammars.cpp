// Python's view of grammars: compiled here, handed to Engine.submit. The GIL is not held while one is compiled.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "grammars.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace slipway {
namespace {

// nanobind hands pointers to const over as pointers to the type itself.
std::shared_ptr<Grammar> compile(const GrammarCompiler& compiler, const std::string& kind, const std::string& text) {
  return std::const_pointer_cast<Grammar>(compiler.compile(kind, text));
}

}  // namespace

void bind_grammars(nb::module_& module) {
  nb::class_<Grammar>(module, "Grammar", "Compiled, for one vocabulary.");
  nb::class_<GrammarCompiler>(module, "GrammarCompiler", "See runtime/grammar.py.")
      .def("__init__", [](GrammarCompiler* self, const std::string& library, nb::handle vocabulary, int32_t vocab_size) {
        std::vector<std::string> pieces;
        for (nb::handle item : vocabulary.attr("pieces")) {
          const auto piece = nb::borrow<nb::bytes>(item);
          pieces.emplace_back(piece.c_str(), piece.size());
        }
        const auto special = nb::cast<std::vector<bool>>(vocabulary.attr("special"));
        nb::gil_scoped_release release;
        new (self) GrammarCompiler(library, pieces, special, vocab_size);
      }, "library"_a, "vocabulary"_a, "vocab_size"_a)
      .def("compile", &compile, nb::call_guard<nb::gil_scoped_release>(), "kind"_a, "text"_a, "ValueError: not a grammar.");
}

}  // namespace slipway
