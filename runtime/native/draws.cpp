#include "draws.hpp"

#include <algorithm>
#include <limits>

#include "philox.hpp"

namespace slipway {
namespace {

// Of plugins/draw_tokens/kernel.cuh: a threshold that the best k of its groups of 128 reach, not all of them, or all logits have room.
int32_t most_top_k(int32_t vocab_size) {
  constexpr int32_t group = 128, most_candidates = 4096, most_groups = 1536;
  const int32_t groups = (vocab_size + group - 1) / group;
  return vocab_size <= most_candidates ? vocab_size : std::min(groups - groups / 8, most_groups);
}

bool is_for_the_host(const SamplingParams& params, int32_t vocab_size) {
  const bool filters = params.top_k > 0 && params.top_k < vocab_size;
  return params.logprobs || params.typical_p < 1 || (filters && params.top_k > most_top_k(vocab_size));
}

}  // namespace

bool draws_ahead(const SamplingParams& params, int32_t vocab_size) {
  return !is_for_the_host(params, vocab_size) && !uses_penalties(params) && params.bad_words.empty();
}

void Draws::clear() {
  draws_.clear();
  edits_.clear();
}

void Draws::add(const SampleContext& row) {
  const SamplingParams& params = *row.params;
  Draw draw{};
  draw.first_edit = static_cast<int32_t>(edits_.size());
  if (!row.on_host && !row.given && !is_for_the_host(params, static_cast<int32_t>(places_.size()))) {
    draw.on_device = 1;
    draw.scale = params.temperature == 0 ? 0 : std::min(1.0f / params.temperature, std::numeric_limits<float>::max());
    draw.top_k = static_cast<size_t>(params.top_k) < places_.size() ? params.top_k : 0;
    draw.top_p = params.top_p;
    draw.min_p = params.min_p;
    if (draw.scale > 0) draw.uniform = random_uniform(row.seed, row.sequence_index, static_cast<uint64_t>(row.output_position()));
    add_edits(row);
    if (edits_.size() > most_edits) {
      edits_.resize(static_cast<size_t>(draw.first_edit));
      draw.on_device = 0;
    }
    draw.num_edits = static_cast<int32_t>(edits_.size()) - draw.first_edit;
  }
  draws_.push_back(draw);
}

void Draws::add_edits(const SampleContext& row) {
  const auto first = static_cast<ptrdiff_t>(edits_.size());
  edit_logits(
      row, [&](int32_t token, float bias) { edit(token).add += bias; },
      [&](int32_t token, const Penalty& penalty) {
        LogitEdit& changed = edit(token);
        changed.repetition = penalty.repetition;
        changed.minus = penalty.minus;
      });
  std::for_each(edits_.begin() + first, edits_.end(), [&](const LogitEdit& made) { places_[static_cast<size_t>(made.token)] = -1; });
}

LogitEdit& Draws::edit(int32_t token) {
  int32_t& place = places_[static_cast<size_t>(token)];
  if (place < 0) {
    place = static_cast<int32_t>(edits_.size());
    edits_.push_back({.token = token, .add = 0, .repetition = 1, .minus = 0});
  }
  return edits_[static_cast<size_t>(place)];
}

}  // namespace slipway
