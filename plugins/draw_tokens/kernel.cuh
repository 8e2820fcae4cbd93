// One token for each wanted row of logits, as the row's Draw asks: runtime/native/sampler.hpp states what is meant, this is its twin
// for all that needs neither a grammar nor logprobs.
//
// A first launch changes single logits, and notes the largest of each group of 128 and what the group weighs. In the second a
// block has a row. Without filters it reads the one group that the draw falls into. With them, group maxima bound the best logits from
// below: a threshold that enough of the best reach is searched among those, and groups that reach it are read once more. What is found
// is sorted in shared memory, so that every filter is a length: top_k, top_p and min_p keep a prefix of (logit descending, id ascending).
#pragma once
#include "slipway/cuda/device.cuh"

namespace slipway::cuda::draw_tokens {

inline constexpr int group = 128, scan_warps = 8, groups_a_warp = 4, threads = 512, warps = threads / 32;
inline constexpr int scanned = group * scan_warps * groups_a_warp;  // logits a block of the first launch
inline constexpr int most_candidates = 4096;
inline constexpr float lowest = -3.402823466e38f;

// Of one group. largest: NaN where the model's logits were not numbers below infinity, infinity where edits made one.
struct GroupScan {
  float largest, weight;  // weight: sum of exp((logit - largest) / temperature)
};

inline bool is_valid(float logit) { return logit < infinity(); }  // not NaN either

// Orders as the floats do: zeros are equal.
inline uint32_t key_of(float x) {
  const uint32_t bits = x == 0 ? 0 : as_bits(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
inline float float_of(uint32_t key) { return as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// The sum of what a warp's lanes bring, up to each of them.
inline double warp_scan(double x) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const double before = __shfl_sync(~0u, x, max(lane() - distance, 0));
    if (lane() >= distance) x += before;
  }
  return x;
}

// What a lane holds of a group: four neighbours, -infinity beyond the vocabulary.
template <int vocabulary> inline void load_four(const float* logits, int g, float (&four)[4]) {
  const int first = g * group + lane() * 4;
  if constexpr (vocabulary % 4 == 0) {
    Words<4> words;
    if (first < vocabulary) words = *reinterpret_cast<const Words<4>*>(logits + first);
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = first < vocabulary ? as_float(words.words[i]) : -infinity();
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = first + i < vocabulary ? logits[first + i] : -infinity();
  }
}

inline bool is_asked(const Call& call, int row) { return call.batch->draws && call.batch->draws[row].on_device; }

template <int vocabulary> inline void scan(const Call& call) {
  constexpr int groups = (vocabulary + group - 1) / group;
  const int row = static_cast<int>(blockIdx.y), begin = static_cast<int>(blockIdx.x) * scanned;
  if (row >= call.rows()) return;
  if (!is_asked(call, row)) return;
  const Draw& draw = call.batch->draws[row];
  float* logits = call.inputs[0].row<float>(row);
  bool edits_invalid = false;
  for (int i = static_cast<int>(threadIdx.x); i < draw.num_edits; i += static_cast<int>(blockDim.x)) {
    const LogitEdit& edit = call.batch->edits[draw.first_edit + i];
    if (edit.token < begin || edit.token >= begin + scanned) continue;
    float& logit = logits[edit.token];
    if (!is_valid(logit)) continue;
    float edited = logit + edit.add;
    edited = edited > 0 ? edited / edit.repetition : edited * edit.repetition;
    edited -= edit.minus;
    edits_invalid |= !is_valid(edited);
    logit = is_valid(edited) ? edited : -infinity();
  }
  edits_invalid = __syncthreads_or(edits_invalid);
  auto* scans = reinterpret_cast<GroupScan*>(call.scratch) + int64_t{row} * groups;
  const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int i = 0; i < groups_a_warp; ++i) {
    const int g = (static_cast<int>(blockIdx.x) * groups_a_warp + i) * scan_warps + warp;
    if (g >= groups) return;
    float four[4];
    load_four<vocabulary>(logits, g, four);
    const bool valid = is_valid(four[0]) && is_valid(four[1]) && is_valid(four[2]) && is_valid(four[3]);
    const bool all_valid = __ballot_sync(~0u, valid) == ~0u;
    const float largest = warp_max(max(max(four[0], four[1]), max(four[2], four[3])));
    float weight = 0;
    if (draw.scale > 0 && largest > -infinity())
#pragma unroll
      for (int k = 0; k < 4; ++k) weight += exp2_approximate((four[k] - largest) * draw.scale * log2_e);
    weight = warp_sum(weight);
    if (lane() == 0) scans[g] = {!all_valid ? as_float(0x7fc00000u) : edits_invalid ? infinity() : largest, weight};
  }
}

template <int vocabulary> struct Shared {
  static constexpr int groups = (vocabulary + group - 1) / group;
  uint64_t candidates[most_candidates];
  float largest[groups];
  double sums[warps];
  uint32_t counts[warps];
  int num_candidates;
};

// A block's work on one row. Every thread calls every function.
template <int vocabulary> class Row {
 public:
  Row(const Call& call, int row)
      : all_(shared<Shared<vocabulary>>()),
        draw_(call.batch->draws[row]),
        logits_(call.inputs[0].row<float>(row)),
        scans_(reinterpret_cast<const GroupScan*>(call.scratch) + int64_t{row} * groups) {}

  int token() {
    int invalid = 0;
    for (int g = thread(); g < groups; g += threads) {
      const float largest = all_.largest[g] = scans_[g].largest;
      invalid = max(invalid, largest != largest ? 2 : largest == infinity() ? 1 : 0);
    }
    const uint32_t worst = block_max(static_cast<uint32_t>(invalid));
    if (worst) return worst == 2 ? drew_invalid_logits : drew_invalid_edits;
    uint32_t best = 0;
    for (int g = thread(); g < groups; g += threads) best = max(best, key_of(all_.largest[g]));
    largest_ = float_of(block_max(best));
    if (largest_ == -infinity()) return left_to_host;
    if (draw_.scale == 0) return best_token();
    if (draw_.top_k == 0 && draw_.top_p >= 1 && draw_.min_p <= 0) return draw_from_all();
    return draw_from_best();
  }

 private:
  static constexpr int groups = Shared<vocabulary>::groups;
  static constexpr int groups_a_thread = (groups + threads - 1) / threads;
  static int thread() { return static_cast<int>(threadIdx.x); }
  static int warp() { return thread() / 32; }

  float weight_of(float logit) const { return exp2_approximate((logit - largest_) * draw_.scale * log2_e); }
  double group_weight(int g) const { return double{scans_[g].weight} * double{weight_of(all_.largest[g])}; }

  uint32_t block_max(uint32_t x) {
    return over_warps(warp_max(x), [](uint32_t a, uint32_t b) { return max(a, b); });
  }
  uint32_t block_count(bool here) { return over_warps(static_cast<uint32_t>(__popc(__ballot_sync(~0u, here))), [](uint32_t a, uint32_t b) { return a + b; }); }
  template <class Merge> uint32_t over_warps(uint32_t of_warp, Merge merge) {
    __syncthreads();  // all have read what was there
    if (lane() == 0) all_.counts[warp()] = of_warp;
    __syncthreads();
    uint32_t all = all_.counts[0];
    for (int w = 1; w < warps; ++w) all = merge(all, all_.counts[w]);
    return all;
  }

  // The sum of what the threads before this one bring; total: of all. Two calls need a barrier between them.
  double sum_before(double mine, double& total) {
    const double through = warp_scan(mine);
    if (lane() == 31) all_.sums[warp()] = through;
    __syncthreads();
    double before = 0;
    total = 0;
    for (int w = 0; w < warps; ++w) {
      if (w == warp()) before = total;
      total += all_.sums[w];
    }
    return before + (through - mine);
  }

  // The first of `count` places whose weights up to it add up to `share` of all (beyond: to more than that), or -1; total: what all weigh.
  template <class Weight> int place_of(int count, Weight weight, double share, bool beyond, double* total = nullptr) {
    const int each = (count + threads - 1) / threads, begin = min(thread() * each, count), end = min(begin + each, count);
    double mine = 0, sum;
    for (int i = begin; i < end; ++i) mine += weight(i);
    double through = sum_before(mine, sum);
    if (total) *total = sum;
    const double target = share * sum;
    return first_place([&] {
      for (int i = begin; i < end; ++i) {
        const double one = weight(i);
        through += one;
        if (beyond ? through > target && one > 0 : through >= target) return i;
      }
      return -1;
    }());
  }
  // The smallest that any thread brings and that is not -1.
  int first_place(int mine) {
    const uint32_t found = block_max(mine < 0 ? 0u : ~static_cast<uint32_t>(mine));
    return found ? static_cast<int>(~found) : -1;
  }

  // The lowest id among the largest logits.
  int best_token() {
    int g = -1;
    for (int i = groups_a_thread - 1; i >= 0; --i) {
      const int mine = thread() + i * threads;
      if (mine < groups && all_.largest[mine] == largest_) g = mine;
    }
    g = first_place(g);
    float four[4];
    load_four<vocabulary>(logits_, g, four);
    int token = -1;
    for (int i = 3; i >= 0; --i)
      if (four[i] == largest_) token = g * group + lane() * 4 + i;
    return first_place(token);
  }

  int draw_from_all() {
    const auto weight = [&](int g) { return group_weight(g); };
    double total;
    int g = place_of(groups, weight, draw_.uniform, true, &total);
    if (g < 0) return left_to_host;  // rounding left a trace of mass
    double before = 0, all;
    for (int i = thread(); i < g; i += threads) before += weight(i);
    sum_before(before, all);
    double left = draw_.uniform * total - all;
    float four[4];
    load_four<vocabulary>(logits_, g, four);
    double mine = 0;
    for (const float logit : four) mine += weight_of(logit);
    // The group's own sum was rounded otherwise: what the draw would have beyond it is the group's last.
    int token = -1, last = -1;
    double at = warp_scan(mine) - mine;
    for (int i = 0; i < 4; ++i) {
      const double one = weight_of(four[i]);
      if (one > 0) last = lane() * 4 + i;
      at += one;
      if (token < 0 && one > 0 && at > left) token = lane() * 4 + i;
    }
    const int found = first_place(token);
    if (found >= 0) return g * group + found;
    return g * group + static_cast<int>(block_max(static_cast<uint32_t>(last + 1))) - 1;
  }

  // The largest logit that at least `count` groups reach.
  float threshold_of_best(int count) {
    uint32_t key = 0;
    for (int bit = 31; bit >= 0; --bit) {
      const uint32_t higher = key | 1u << bit;
      uint32_t reached = 0;
      for (int i = 0; i < groups_a_thread; ++i) {
        const int g = thread() + i * threads;
        reached += block_count(g < groups && key_of(all_.largest[g]) >= higher);
      }
      if (reached >= static_cast<uint32_t>(count)) key = higher;
    }
    return max(float_of(key), lowest);
  }

  // The logits that reach the threshold, best first; whether there is room for all.
  bool gather(float threshold) {
    if (thread() == 0) all_.num_candidates = 0;
    __syncthreads();
    for (int g = warp(); g < groups; g += warps) {
      if (all_.largest[g] < threshold) continue;
      float four[4];
      load_four<vocabulary>(logits_, g, four);
      for (int i = 0; i < 4; ++i) {
        const bool taken = four[i] >= threshold;
        const uint32_t taking = __ballot_sync(~0u, taken);
        int first = 0;
        if (lane() == 0) first = fetch_add(&all_.num_candidates, __popc(taking));
        first = __shfl_sync(~0u, first, 0) + __popc(taking & ((1u << lane()) - 1));
        if (taken && first < most_candidates) all_.candidates[first] = uint64_t{key_of(four[i])} << 32 | ~static_cast<uint32_t>(g * group + lane() * 4 + i);
      }
    }
    __syncthreads();
    count_ = all_.num_candidates;
    if (count_ > most_candidates) return false;
    sort(count_);
    return true;
  }

  // The first `count` candidates, largest first (bitonic).
  void sort(int count) {
    int size = 2;
    while (size < count) size *= 2;
    for (int i = count + thread(); i < size; i += threads) all_.candidates[i] = 0;
    for (int run = 2; run <= size; run *= 2)
      for (int distance = run / 2; distance; distance /= 2) {
        __syncthreads();
        for (int pair = thread(); pair < size / 2; pair += threads) {
          const int low = pair / distance * 2 * distance + pair % distance, high = low + distance;
          const uint64_t a = all_.candidates[low], b = all_.candidates[high];
          const bool descends = (low & run) == 0;
          if ((a < b) == descends) {
            all_.candidates[low] = b;
            all_.candidates[high] = a;
          }
        }
      }
    __syncthreads();
  }

  double candidate_weight(int i) const { return weight_of(float_of(static_cast<uint32_t>(all_.candidates[i] >> 32))); }

  // Gathers at least what the filters leave; whether there is room for it.
  bool gather_enough(double total) {
    if (draw_.top_k > 0) return gather(draw_.top_k < groups ? threshold_of_best(draw_.top_k) : lowest);
    if (draw_.top_p >= 1) return gather(max(largest_ + (logf(draw_.min_p) - 1) / draw_.scale, lowest));  // a little more than enough
    const int most = min(groups - groups / 8, 1536);  // of random logits two a group are as good then
    for (const int best : {min(32, most), min(256, most), min(1024, most), most}) {
      if (!gather(threshold_of_best(best))) return false;
      double mass;
      place_of(count_, [&](int i) { return candidate_weight(i); }, 0, false, &mass);
      if (mass >= total * double{draw_.top_p}) return true;
    }
    return vocabulary <= most_candidates && gather(lowest);
  }

  int draw_from_best() {
    double total = 0;
    if (draw_.top_k == 0 && draw_.top_p < 1)
      place_of(groups, [&](int g) { return group_weight(g); }, 0, false, &total);
    if (!gather_enough(total)) return left_to_host;
    int kept = draw_.top_k > 0 ? min(draw_.top_k, count_) : count_;
    const auto weight = [&](int i) { return candidate_weight(i); };
    if (draw_.top_p < 1) {
      double mass;
      place_of(kept, weight, 0, false, &mass);
      const double share = draw_.top_k > 0 ? double{draw_.top_p} : double{draw_.top_p} * total / mass;
      const int last = place_of(kept, weight, share, false);
      if (last >= 0) kept = last + 1;
    }
    if (draw_.min_p > 0) {
      const auto limit = static_cast<float>(double{draw_.min_p} * candidate_weight(0));
      uint32_t above = 0;
      for (int i = 0; i < kept; i += threads) above += block_count(i + thread() < kept && candidate_weight(i + thread()) >= double{limit});
      kept = static_cast<int>(above);
    }
    // The draw counts in order of ids.
    for (int i = thread(); i < kept; i += threads) {
      const uint64_t candidate = all_.candidates[i];
      all_.candidates[i] = candidate << 32 | as_bits(static_cast<float>(candidate_weight(i)));
    }
    sort(kept);
    const auto by_id = [&](int i) { return double{as_float(static_cast<uint32_t>(all_.candidates[i]))}; };
    int place = place_of(kept, by_id, draw_.uniform, true);
    if (place < 0) place = kept - 1;
    return static_cast<int>(~static_cast<uint32_t>(all_.candidates[place] >> 32));
  }

  Shared<vocabulary>& all_;
  const Draw& draw_;
  const float* logits_;
  const GroupScan* scans_;
  float largest_ = 0;
  int count_ = 0;
};

// A block has one row.
template <int vocabulary> inline void draw(const Call& call) {
  const int row = static_cast<int>(blockIdx.x);
  if (row >= call.rows()) return;
  const int token = is_asked(call, row) ? Row<vocabulary>(call, row).token() : left_to_host;
  if (threadIdx.x == 0) *call.outputs[0].row<int32_t>(row) = token;
}

}  // namespace slipway::cuda::draw_tokens
