// Integers of known sizes, and bytes: NVRTC has no standard headers.
#pragma once
#if defined(__CUDACC_RTC__)
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
namespace std {
enum class byte : unsigned char {};
}
#else
#include <cstddef>
#include <cstdint>
#endif
