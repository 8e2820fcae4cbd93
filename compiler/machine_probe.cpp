// The limits a step cannot pass for long: reading memory, and multiplying what already lies in registers.
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include <immintrin.h>

namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kReadAtOnce = 1 << 20;        // bytes between two looks at the clock: some 50 us
constexpr int64_t kMultipliedAtOnce = 10'000;  // rounds of `multiply`: some 40 us

// Two spinning threads on one core would halve what is measured: each thread takes the next core there is.
void take_core(int number) {
  cpu_set_t usable, own;
  if (sched_getaffinity(getpid(), sizeof usable, &usable) != 0) return;
  number %= CPU_COUNT(&usable);
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &usable) || seen++ != number) continue;
    CPU_ZERO(&own);
    CPU_SET(cpu, &own);
    pthread_setaffinity_np(pthread_self(), sizeof own, &own);
  }
}

// Seconds between the moment all threads are ready and the moment the last is done. Throws if they cannot all be started.
double time_team(int threads, const std::function<void(int)>& work) {
  std::atomic<int> ready{0};
  enum { kWait, kWork, kLeave };
  std::atomic<int> word{kWait};
  std::vector<std::thread> team;
  const auto dismiss = [&](int last_word) {
    word = last_word;
    for (auto& thread : team) thread.join();
  };
  try {
    for (int t = 0; t < threads; ++t) {
      team.emplace_back([&, t] {
        take_core(t);
        ready.fetch_add(1);
        while (word.load() == kWait) _mm_pause();
        if (word.load() == kWork) work(t);
      });
    }
  } catch (...) {
    dismiss(kLeave);
    throw;
  }
  while (ready.load() < threads) std::this_thread::yield();
  const auto start = Clock::now();
  dismiss(kWork);
  return std::chrono::duration<double>(Clock::now() - start).count();
}

uint64_t read_all(const __m256i* data, int64_t count) {
  __m256i sum[4] = {};
  for (int64_t i = 0; i + 4 <= count; i += 4) {
    _mm_prefetch(reinterpret_cast<const char*>(data + i) + 2048, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(data + i) + 2112, _MM_HINT_T0);
    for (int j = 0; j < 4; ++j) sum[j] = _mm256_add_epi64(sum[j], _mm256_load_si256(data + i + j));
  }
  const __m256i all = _mm256_add_epi64(_mm256_add_epi64(sum[0], sum[1]), _mm256_add_epi64(sum[2], sum[3]));
  return uint64_t(_mm256_extract_epi64(all, 0)) + uint64_t(_mm256_extract_epi64(all, 3));
}

#if defined(__AMX_BF16__)

// Four accumulators: two tiles of A times two of B, as a matrix multiply holds them. 16 x 16 x 32 products a tile.
constexpr double kFlopsPerRound = 4 * 2.0 * 16 * 16 * 32;

void multiply(int64_t rounds) {
  syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18);
  alignas(64) uint8_t config[64] = {1};
  for (int tile = 0; tile < 8; ++tile) {
    config[16 + 2 * tile] = 64;
    config[48 + tile] = 16;
  }
  asm volatile("" ::: "memory");  // gcc 12 drops stores into the configuration otherwise
  _tile_loadconfig(config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}

#else

#if defined(__AVX512BF16__)
using Vector = __m512;
Vector multiply_add(Vector a, Vector sum) { return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(a)); }
constexpr int kFlopsPerVector = 2 * 32;
#elif defined(__AVX512F__)
using Vector = __m512;
Vector multiply_add(Vector a, Vector sum) { return _mm512_fmadd_ps(a, a, sum); }
constexpr int kFlopsPerVector = 2 * 16;
#else
using Vector = __m256;
Vector multiply_add(Vector a, Vector sum) { return _mm256_fmadd_ps(a, a, sum); }
constexpr int kFlopsPerVector = 2 * 8;
#endif

constexpr int kSums = 12;  // more than a multiply takes cycles, on two units
constexpr double kFlopsPerRound = kSums * kFlopsPerVector;

template <int... i>
void multiply(int64_t rounds, std::integer_sequence<int, i...>) {
  const auto hide = [](Vector& value) { asm volatile("" : "+v"(value)); };  // from the compiler: equal sums are one to it
  Vector sums[kSums] = {}, x = {};
  (hide(sums[i]), ...);
  for (int64_t round = 0; round < rounds; ++round) {
    ((sums[i] = multiply_add(x, sums[i])), ...);
    hide(x);
  }
  (hide(sums[i]), ...);
}

void multiply(int64_t rounds) { multiply(rounds, std::make_integer_sequence<int, kSums>()); }

#endif

// Of all threads together, what each does in `seconds`: work(thread, n) does its n-th piece. Pieces a second.
double sustained(int threads, double seconds, const std::function<void(int, int64_t)>& work) {
  std::atomic<int64_t> pieces{0};
  const auto span = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  const double taken = time_team(threads, [&](int thread) {
    const auto end = Clock::now() + span;
    int64_t done = 0;
    do work(thread, done++);
    while (Clock::now() < end);
    pieces += done;
  });
  return pieces / taken;
}

double read_bandwidth(int threads, int64_t bytes_per_thread, double seconds) {
  std::vector<std::unique_ptr<std::byte, decltype(&free)>> memory;
  for (int t = 0; t < threads; ++t) {
    memory.emplace_back(static_cast<std::byte*>(aligned_alloc(1 << 21, bytes_per_thread)), &free);
    if (!memory.back()) throw std::bad_alloc();
  }
  for (auto& part : memory) madvise(part.get(), bytes_per_thread, MADV_HUGEPAGE);
  time_team(threads, [&](int t) { std::memset(memory[t].get(), t + 1, bytes_per_thread); });
  std::atomic<uint64_t> sink{0};
  return kReadAtOnce * sustained(threads, seconds, [&](int t, int64_t piece) {
    sink += read_all(reinterpret_cast<const __m256i*>(memory[t].get() + piece * kReadAtOnce % bytes_per_thread), kReadAtOnce / 32);
  });
}

double multiply_rate(int threads, double seconds) {
  return kMultipliedAtOnce * kFlopsPerRound * sustained(threads, seconds, [](int, int64_t) { multiply(kMultipliedAtOnce); });
}

// The result, or 0 where the system refuses the threads or their memory.
double or_zero(const std::function<double()>& measure) {
  try {
    return measure();
  } catch (const std::system_error&) {
    return 0;
  } catch (const std::bad_alloc&) {
    return 0;
  }
}

}  // namespace

// Bytes a second that `threads` read in `seconds`, each of its own `bytes_per_thread`, a multiple of 2 MiB. What memory sustains, not
// its best moment: a shared machine's changes within milliseconds, and a step is compared with this.
extern "C" double slipway_read_bandwidth(int threads, int64_t bytes_per_thread, double seconds) {
  return or_zero([&] { return read_bandwidth(threads, bytes_per_thread, seconds); });
}

// Floating-point operations a second (bf16 where the processor multiplies it, else float32).
extern "C" double slipway_multiply_rate(int threads, double seconds) {
  return or_zero([&] { return multiply_rate(threads, seconds); });
}
