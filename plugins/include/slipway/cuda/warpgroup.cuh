// What four warps do together from sm90a on: products of registers and shared memory that go on behind the threads' backs (wgmma), and
// bulk copies into shared memory that arrive at a barrier there (mbarrier).
//
// A product's sums and its operand in registers may not be touched before it is waited for, nor may its operand in shared memory.
#pragma once
#include "slipway/cuda/device.cuh"
#if defined(__CUDACC_RTC__)
#include "slipway/cuda/warpgroup_ptx.cuh"
#else
#include "slipway/emulation/warpgroup.hpp"
#endif
