#include "step_batch.hpp"

#include <algorithm>

#include "sequence.hpp"

namespace slipway {
namespace {

SampleContext context_of(const Sequence& sequence, size_t history_length) {
  const RequestGroup& group = *sequence.group;
  const auto history = std::span(sequence.tokens).first(history_length);
  const size_t prompt_length = group.request.prompt.size();
  return {.params = &group.request.params,
          .history = history,
          .prompt_length = static_cast<int32_t>(prompt_length),
          .penalties = sequence.penalties ? &*sequence.penalties : nullptr,
          .ending_tokens = group.ending_tokens,
          .allowed_tokens = nullptr,
          .seed = group.seed,
          .sequence_index = static_cast<uint32_t>(sequence.index),
          .on_host = sequence.constraint || sequence.on_host};
}

}  // namespace

void StepBatch::clear() {
  rows.clear();
  request_ids.clear();
  sequence_indices.clear();
  slots.clear();
  constrained.clear();
  for (auto* values : {&token_ids, &positions, &kv_lens, &block_table, &logit_rows}) values->clear();
  cu_seqlens.assign(1, 0);
}

void StepBatch::append(Sequence& sequence, int32_t num_tokens) {
  const int32_t begin = sequence.num_computed, end = begin + num_tokens;
  const bool last = end == static_cast<int32_t>(sequence.tokens.size());
  const int32_t wanted = sequence.rows_wanted(num_tokens), drawn = last ? 1 + sequence.num_drafts : 0;
  slots.push_back({&sequence, num_tokens, last ? sequence.num_drafts : 0, num_rows(), wanted, wanted - drawn});
  for (int32_t position = begin; position < end; ++position) {
    const auto next = static_cast<size_t>(position) + 1;
    const bool scored = position >= sequence.num_scored && position < sequence.num_to_score();
    if (scored || position >= end - drawn) {
      logit_rows.push_back(this->num_tokens());
      rows.push_back(context_of(sequence, next));
      if (scored) rows.back().given = sequence.tokens[next];
    }
    token_ids.push_back(sequence.tokens[static_cast<size_t>(position)]);
    positions.push_back(position);
  }
  cu_seqlens.push_back(this->num_tokens());
  kv_lens.push_back(end);
  request_ids.push_back(sequence.group->request.id);
  sequence_indices.push_back(sequence.index);
  sequence.in_step = true;
  if (sequence.constraint && wanted > 0) constrained.push_back({.slot = slots.size() - 1, .first_mask = 0});
}

void StepBatch::append_drawn(Sequence& sequence, int32_t row) {
  slots.push_back({&sequence, 1, 0, num_rows(), 1, 0});
  logit_rows.push_back(num_tokens());
  rows.push_back(context_of(sequence, sequence.tokens.size()));
  rows.back().pending = 1;
  token_ids.push_back(~row);
  positions.push_back(sequence.num_known());
  cu_seqlens.push_back(num_tokens());
  kv_lens.push_back(positions.back() + 1);
  request_ids.push_back(sequence.group->request.id);
  sequence_indices.push_back(sequence.index);
}

void StepBatch::take_drawn() {
  for (const Slot& slot : slots)
    rows[static_cast<size_t>(slot.first_row)] = slot.sequence ? context_of(*slot.sequence, slot.sequence->tokens.size()) : SampleContext{};
}

void StepBatch::seal(int32_t vocab_size) {
  size_t width = 0;
  for (const Slot& slot : slots) width = std::max(width, slot.sequence->lease.blocks.size());
  for (const Slot& slot : slots) {
    const std::vector<int32_t>& blocks = slot.sequence->lease.blocks;
    block_table.insert(block_table.end(), blocks.begin(), blocks.end());
    block_table.resize(block_table.size() + width - blocks.size());
  }
  batch = {.num_tokens = num_tokens(),
           .num_seqs = static_cast<int32_t>(slots.size()),
           .num_logit_rows = num_rows(),
           .max_blocks = static_cast<int32_t>(width),
           .token_ids = token_ids.data(),
           .positions = positions.data(),
           .cu_seqlens = cu_seqlens.data(),
           .kv_lens = kv_lens.data(),
           .block_table = block_table.data(),
           .logit_rows = logit_rows.data(),
           .draws = nullptr,
           .edits = nullptr,
           .drawn = {}};
  size_t num_masks = 0;
  for (Constrained& entry : constrained) {
    entry.first_mask = num_masks;
    num_masks += static_cast<size_t>(slots[entry.slot].num_rows);
  }
  words_a_mask = mask_words(vocab_size);
  masks.resize(num_masks * words_a_mask);
}

std::optional<std::string> StepBatch::constrain(size_t index) {
  const Constrained& entry = constrained[index];
  const Slot& slot = slots[entry.slot];
  const auto num_rows = static_cast<size_t>(slot.num_rows);
  const std::span own = std::span(masks).subspan(entry.first_mask * words_a_mask, num_rows * words_a_mask);
  for (size_t row = 0; row < num_rows; ++row) rows[static_cast<size_t>(slot.first_row) + row].allowed_tokens = &own[row * words_a_mask];
  const std::span drafts = std::span(slot.sequence->tokens).last(static_cast<size_t>(slot.num_drafts));
  return slot.sequence->constraint->allow(drafts, slot.sequence->group->ending_tokens, own);
}

}  // namespace slipway
