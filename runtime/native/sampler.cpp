#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "candidates.hpp"
#include "philox.hpp"
#include "row_scan.hpp"

namespace slipway {
namespace {

constexpr float masked = -std::numeric_limits<float>::infinity();

void mask_disallowed(std::span<float> logits, const uint32_t* allowed) {
  for (size_t start = 0; start < logits.size(); start += 32) {
    const uint32_t word = allowed[start / 32];
    if (word == ~0u) continue;
    for (size_t i = start; i < std::min(start + 32, logits.size()); ++i)
      if (!(word >> (i - start) & 1)) logits[i] = masked;
  }
}

bool has_edits(const SampleContext& c) {
  const SamplingParams& p = *c.params;
  return !p.logit_bias.empty() || !p.bad_words.empty() || c.output_position() < p.min_tokens || c.penalties;
}

}  // namespace

struct Sampler::Scratch {
  std::span<const float> row;
  RowScan scan;
  std::vector<float> raw, weights, maxima;
  std::vector<double> chunk_sums;
  std::vector<int32_t> tokens;
  Candidates candidates;
  double log_normalizer = 0;  // of the raw row
  bool weighed = false;       // `weights` are those of this row at the scale in use

  void note_logprobs(std::span<const float> logits, int32_t count, Sampled& sampled);
  float logprob(int32_t token) const { return static_cast<float>(static_cast<double>(raw[static_cast<size_t>(token)]) - log_normalizer); }
  double weigh(float scale);
  void gather(float threshold, float scale);
  void gather_mass(double target, float scale);
  int32_t draw_from_all(double uniform, float scale);
  int32_t choose(const SamplingParams& params, double uniform);
};

// The model's own distribution, before any edit.
void Sampler::Scratch::note_logprobs(std::span<const float> logits, int32_t count, Sampled& sampled) {
  raw.assign(logits.begin(), logits.end());
  log_normalizer = static_cast<double>(scan.max) + std::log(weigh(1.0f));
  const auto wanted = std::min(static_cast<size_t>(count), raw.size());
  if (wanted == 0) return;
  gather(threshold_of_best(scan, wanted, maxima), 1.0f);
  keep_top_k(candidates, wanted);
  std::ranges::stable_sort(candidates, std::greater<>(), &Candidate::score);
  for (const Candidate& c : candidates)
    sampled.top.push_back({c.token, logprob(c.token)});
}

double Sampler::Scratch::weigh(float scale) {
  weighed = true;
  weights.resize(row.size());
  weigh_row(row, scan.max, scale, weights, chunk_sums);
  double sum = 0;
  for (const double part : chunk_sums) sum += part;
  return sum;
}

void Sampler::Scratch::gather(float threshold, float scale) {
  tokens_from(row, scan, threshold, tokens);
  candidates.clear();
  for (const int32_t token : tokens) {
    const auto at = static_cast<size_t>(token);
    const float score = (row[at] - scan.max) * scale;
    candidates.push_back({token, score, weighed ? weights[at] : std::exp(score)});
  }
}

// More and more of the best tokens, until they hold the mass.
void Sampler::Scratch::gather_mass(double target, float scale) {
  for (const size_t count : {size_t{32}, size_t{256}, size_t{2048}, size_t{0}}) {  // 0: all
    gather(threshold_of_best(scan, count, maxima), scale);
    if (mass(candidates) >= target) return;
  }
}

int32_t Sampler::Scratch::draw_from_all(double uniform, float scale) {
  double left = uniform * weigh(scale);
  size_t chunk = 0;
  for (; chunk + 1 < chunk_sums.size() && left >= chunk_sums[chunk]; ++chunk) left -= chunk_sums[chunk];
  int32_t last = best_token(row, scan);
  for (size_t i = chunk * row_chunk; i < std::min((chunk + 1) * row_chunk, row.size()); ++i) {
    if (weights[i] <= 0) continue;
    last = static_cast<int32_t>(i);
    left -= static_cast<double>(weights[i]);
    if (left < 0) break;
  }
  return last;
}

int32_t Sampler::Scratch::choose(const SamplingParams& p, double uniform) {
  weighed = false;
  const float scale = std::min(1.0f / p.temperature, std::numeric_limits<float>::max());
  const bool top_k = p.top_k > 0 && static_cast<size_t>(p.top_k) < row.size();
  if (!top_k && p.typical_p >= 1 && p.top_p >= 1 && p.min_p <= 0) return draw_from_all(uniform, scale);
  if (top_k) {
    gather(threshold_of_best(scan, static_cast<size_t>(p.top_k), maxima), scale);
    keep_top_k(candidates, static_cast<size_t>(p.top_k));
  } else if (p.typical_p < 1) {
    weigh(scale);
    gather(std::numeric_limits<float>::lowest(), scale);
  } else if (p.top_p < 1) {
    const double target = static_cast<double>(p.top_p) * weigh(scale);
    gather_mass(target, scale);
    keep_top_p(candidates, target);
  } else {
    const float least = scan.max + (std::log(p.min_p) - 1.0f) / scale;  // a little more than enough: keep_min_p decides
    gather(std::max(least, std::numeric_limits<float>::lowest()), scale);
  }
  if (p.typical_p < 1) keep_typical(candidates, p.typical_p);
  if (p.top_p < 1 && (top_k || p.typical_p < 1)) keep_top_p(candidates, static_cast<double>(p.top_p) * mass(candidates));
  if (p.min_p > 0) keep_min_p(candidates, p.min_p);
  return draw(candidates, uniform);
}

Sampler::Sampler(int32_t vocab_size) : vocab_size_(vocab_size), scratch_(std::make_unique<Scratch>()) {}
Sampler::~Sampler() = default;
Sampler::Sampler(Sampler&&) noexcept = default;

Sampled Sampler::sample(std::span<float> logits, const SampleContext& context, bool edited) {
  Sampled sampled;
  const SamplingParams& params = *context.params;
  Scratch& s = *scratch_;
  s.row = logits;
  scan_row(logits, s.scan);
  const auto fail = [&sampled](const char* why) {
    sampled.error = why;
    return sampled;
  };
  if (!s.scan.valid) return fail(invalid_logits);
  const bool to_edit = !edited && has_edits(context);
  if (s.scan.max == masked && !(edited && has_edits(context))) return fail("the model's logits leave no token to choose");
  if (const auto count = context.given ? params.prompt_logprobs : params.logprobs) s.note_logprobs(logits, *count, sampled);
  if (context.given) {
    sampled.token = *context.given;
    sampled.logprob = s.logprob(sampled.token);
    return sampled;
  }
  if (to_edit)
    edit_logits(
        context, [&](int32_t token, float bias) { logits[static_cast<size_t>(token)] += bias; },
        [&](int32_t token, const Penalty& penalty) { logits[static_cast<size_t>(token)] = penalty(logits[static_cast<size_t>(token)]); });
  if (context.allowed_tokens) mask_disallowed(logits, context.allowed_tokens);
  if (to_edit || context.allowed_tokens) {
    scan_row(logits, s.scan);
    if (!s.scan.valid) return fail(invalid_edits);
  }
  if (s.scan.max == masked) return fail("biases, bad words, min_tokens and grammar leave no token to choose");
  const auto position = static_cast<uint64_t>(context.output_position());
  sampled.token = params.temperature == 0 ? best_token(logits, s.scan)
                                          : s.choose(params, random_uniform(context.seed, context.sequence_index, position));
  if (params.logprobs) sampled.logprob = s.logprob(sampled.token);
  return sampled;
}

}  // namespace slipway
