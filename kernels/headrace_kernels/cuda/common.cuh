// What the kernels share. The same files compile with NVRTC, which brings no headers, and with g++ and a host shim.
#pragma once

#ifdef CUDA_HOST_SHIM
#include "cuda_host_shim.hpp"
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(host_shim::dynamic_shared)
#else
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

using i8 = signed char;
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

constexpr u32 ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;
#ifdef CUDA_HOST_SHIM
#define INFINITE HUGE_VALF
#else
#define INFINITE __int_as_float(0x7f800000)
#endif

struct f16 {
  u16 bits;
};

__device__ inline float to_float(float x) { return x; }

__device__ inline float to_float(f16 x) {
#ifdef CUDA_HOST_SHIM
  return host_shim::half_to_float(x.bits);
#else
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
#endif
}

// Rounds to nearest, half to even; what is too large becomes infinite.
__device__ inline void store(float* where, float x) { *where = x; }

__device__ inline void store(f16* where, float x) {
#ifdef CUDA_HOST_SHIM
  where->bits = host_shim::float_to_half(x);
#else
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  where->bits = bits;
#endif
}

// N elements that are loaded or stored at once, by 16 bytes at most, where they are aligned.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Together {
  T of[N];
};

template <int N, class T>
__device__ inline bool aligned_for(const T* where) {
  return reinterpret_cast<u64>(where) % alignof(Together<T, N>) == 0;
}
