// PTX behind functions; emulation/intrinsics.hpp has the twin of each.
#pragma once

// A kernel begins when all blocks of the one before have begun (programmatic dependent launch, from sm90 on), and waits for its end before
// it reads what kernels write. Every thread of every kernel must wait: that the one before has ended then says it of all before.
// blocks: of `threads` threads each that a multiprocessor is to hold at least, which bounds a thread's registers.
#define SLIPWAY_KERNEL(name, threads, blocks)                                              \
  static __forceinline__ void name##_after(const slipway::cuda::Call& call);               \
  SLIPWAY_KERNEL_THAT_WAITS(name, threads, blocks) {                                       \
    slipway::cuda::wait_for_previous();                                                    \
    name##_after(call);                                                                    \
  }                                                                                        \
  static __forceinline__ void name##_after([[maybe_unused]] const slipway::cuda::Call& call)

// One that calls wait_for_previous() itself, after what it can do before.
#define SLIPWAY_KERNEL_THAT_WAITS(name, threads, blocks)                                   \
  static __forceinline__ void name##_body(const slipway::cuda::Call& call);                \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ slipway::cuda::Call call) { \
    slipway::cuda::let_next_begin();                                                       \
    name##_body(call);                                                                     \
  }                                                                                        \
  static __forceinline__ void name##_body([[maybe_unused]] const slipway::cuda::Call& call)

namespace slipway::cuda {

#if __CUDA_ARCH__ >= 900
inline void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;"); }
inline void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#else
inline void let_next_begin() {}
inline void wait_for_previous() {}
#endif

template <class T> inline T max(T a, T b) { return a < b ? b : a; }
template <class T> inline T min(T a, T b) { return b < a ? b : a; }

inline float as_float(uint32_t bits) { return __uint_as_float(bits); }
inline uint32_t as_bits(float value) { return __float_as_uint(value); }
inline float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
inline float infinity() { return as_float(0x7f800000u); }
inline float inverse_sqrt(float x) { return rsqrtf(x); }
inline float divide_approximate(float a, float b) { return __fdividef(a, b); }

// All of a block's shared memory, as one struct.
template <class Shared> inline Shared& shared() {
  extern __shared__ __align__(1024) unsigned char slipway_shared[];
  return *reinterpret_cast<Shared*>(slipway_shared);
}

inline uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
inline uint16_t round_to_bf16(float value) { return static_cast<uint16_t>(pack_bf16(value, 0.0f)); }

inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Of what is read once: it takes no room in L1.
template <class Vector> inline Vector load_streaming(const Vector* from) {
  Vector result;
  uint32_t* to = result.words;
  if constexpr (sizeof(Vector) == 16)
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "l"(from));
  else if constexpr (sizeof(Vector) == 8)
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "l"(from));
  else
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(to[0]) : "l"(from));
  return result;
}

inline void check_alignment(const void*, int) {}  // the emulation's

// Sixteen bytes from global to shared memory behind the thread's back; zeros where nothing is `there`.
inline void copy_async_16(void* to, const void* from, bool there) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(there ? 16 : 0) : "memory");
}
inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending> inline void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory"); }

inline int fetch_add(int* shared, int count) { return atomicAdd(shared, count); }
inline uint32_t increment_wrapping(uint32_t* counter, uint32_t last) { return atomicInc(counter, last); }

}  // namespace slipway::cuda
