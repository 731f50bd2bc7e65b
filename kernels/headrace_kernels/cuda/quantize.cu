// Floating point <-> 8-bit integers with scale and zero point for each channel: ONNX QuantizeLinear, DequantizeLinear.
//
// A tensor is [outer, channels, inner]. It is taken as rows of `period` elements, a multiple of 8 and of channels * inner,
// so that elements in the same place of two rows have the same channel. A thread finds the channels of eight elements of a
// row once, and converts those in the same place of further rows. What is left behind the last whole row is converted one
// by one, and so is all of a tensor that is not aligned.
#include "common.cuh"

constexpr int TOGETHER = 8;

template <class T>
using Eight = Together<T, TOGETHER>;

template <class Q>
struct Limits;
template <>
struct Limits<i8> {
  static constexpr float low = -128.f, high = 127.f;
};
template <>
struct Limits<u8> {
  static constexpr float low = 0.f, high = 255.f;
};

struct Channel {
  float scale, zero, inverse;
};

// zero: null for zeros.
template <class Zero>
__device__ inline Channel channel_of(const float* __restrict__ scale, const Zero* __restrict__ zero, u32 channel) {
  return {scale[channel], zero ? float(zero[channel]) : 0.f, 1.f / scale[channel]};
}

// fmaxf of a NaN is the other: NaN becomes the lowest value.
template <class Q>
__device__ inline Q rounded(float ratio, float zero) {
  return Q(fminf(fmaxf(rintf(ratio) + zero, Limits<Q>::low), Limits<Q>::high));
}

template <class Real, class Q>
__device__ inline void quantize(Real x, const Channel& by, Q* to) {
  *to = rounded<Q>(to_float(x) / by.scale, by.zero);
}

// What the quick way below is for: with these scales nothing that matters over- or underflows, and whatever is beyond
// LARGE is beyond the integers.
constexpr float LARGE = float(1ull << 60);

__device__ inline bool usual(float scale) { return scale > 1.f / LARGE && scale < LARGE / 1024.f; }

// A true division, as ONNX has it: the product with the reciprocal rounds some values to their neighbours, so it is
// corrected by what it leaves of x (Markstein, Computation of Elementary Functions on the IBM RISC System/6000, 1990).
__device__ inline float quotient(float x, const Channel& by) {
  const float near = x * by.inverse;
  return fmaf(fmaf(-by.scale, near, x), by.inverse, near);
}

// Added to a quotient that is within reach of the integers, it leaves no place for a fraction: the sum is rounded, half
// to even as it is even itself, and its last bits are those of an integer. rintf and a conversion take several times as
// long.
constexpr float INTEGER = 3 << 22;

template <class Real, class Q>
__device__ inline void quantize(const Eight<Real>& from, const Channel (&by)[TOGETHER], Eight<Q>* to) {
#pragma unroll
  for (int i = 0; i < TOGETHER; ++i) {
    const float x = fminf(fmaxf(to_float(from.of[i]), -LARGE), LARGE);  // an infinity has no quotient
    const float sum = quotient(x, by[i]) + INTEGER + by[i].zero;
    const float within = fminf(fmaxf(sum, INTEGER + Limits<Q>::low), INTEGER + Limits<Q>::high);
    u32 bits;
    memcpy(&bits, &within, sizeof bits);
    to->of[i] = Q(bits);
  }
}

template <class Q, class Real>
__device__ inline void dequantize(Q q, const Channel& by, Real* to) {
  store(to, (float(q) - by.zero) * by.scale);
}

template <class Q, class Real>
__device__ inline void dequantize(const Eight<Q>& from, const Channel (&by)[TOGETHER], Eight<Real>* to) {
#pragma unroll
  for (int i = 0; i < TOGETHER; ++i) dequantize(from.of[i], by[i], &to->of[i]);
}

struct Quantizing {
  template <class In, class By, class Out>
  __device__ static void run(const In& from, const By& by, Out* to) { quantize(from, by, to); }
};

struct Dequantizing {
  template <class In, class By, class Out>
  __device__ static void run(const In& from, const By& by, Out* to) { dequantize(from, by, to); }
};

// total, period <= 2^30. Block and grid: groups of eight in a row, rows.
template <class Way, class In, class Out, class Zero>
__device__ inline void each(const In* __restrict__ in, const float* __restrict__ scale, const Zero* __restrict__ zero,
                            Out* __restrict__ out, u32 total, u32 channels, u32 inner, u32 period) {
  constexpr int AHEAD = sizeof(In) == 2 ? 4 : 2;  // rows of which a thread loads its elements before it looks at any
  const u32 rows = aligned_for<TOGETHER>(in) && aligned_for<TOGETHER>(out) ? total / period : 0;
  const u32 first = TOGETHER * (blockIdx.x * blockDim.x + threadIdx.x);
  const u32 begin = blockIdx.y * blockDim.y + threadIdx.y, step = gridDim.y * blockDim.y;
  const auto single = [&](u32 i) {
    Way::run(in[i], channel_of(scale, zero, channels > 1 ? i / inner % channels : 0u), out + i);
  };
  if (first < period && begin < rows) {
    Channel by[TOGETHER];
    bool quick = true;
    u32 within = 0, channel = 0;
    if (channels > 1) {
      within = first % inner;
      channel = first / inner % channels;
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) {
      by[i] = channel_of(scale, zero, channel);
      quick &= usual(by[i].scale);
      if (channels > 1 && ++within == inner) {
        within = 0;
        if (++channel == channels) channel = 0;
      }
    }
    for (u32 row = begin; quick && row < rows; row += AHEAD * step) {
      Eight<In> from[AHEAD];
#pragma unroll
      for (int i = 0; i < AHEAD; ++i)
        if (row + i * step < rows)
          from[i] = *reinterpret_cast<const Eight<In>*>(in + (row + i * step) * period + first);
#pragma unroll
      for (int i = 0; i < AHEAD; ++i) {
        if (row + i * step >= rows) break;
        Eight<Out> to;
        Way::run(from[i], by, &to);
        *reinterpret_cast<Eight<Out>*>(out + (row + i * step) * period + first) = to;
      }
    }
    for (u32 row = begin; !quick && row < rows; row += step) {
#pragma unroll 1
      for (u32 i = 0; i < TOGETHER; ++i) single(row * period + first + i);
    }
  }
  const u32 block = blockIdx.y * gridDim.x + blockIdx.x, of_block = blockDim.x * blockDim.y;
  const u32 thread = block * of_block + threadIdx.y * blockDim.x + threadIdx.x;
  for (u32 i = rows * period + thread; i < total; i += gridDim.x * gridDim.y * of_block) single(i);
}

#define QUANTIZE(real, Real, integer, Q)                                                                              \
  extern "C" __global__ void __launch_bounds__(256, 4) quantize_##real##_##integer(                                      \
      const Real* x, const float* scale, const Q* zero, Q* out, u32 total, u32 channels, u32 inner, u32 period) {     \
    each<Quantizing>(x, scale, zero, out, total, channels, inner, period);                                            \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256, 4) dequantize_##integer##_##real(                                    \
      const Q* q, const float* scale, const Q* zero, Real* out, u32 total, u32 channels, u32 inner, u32 period) {     \
    each<Dequantizing>(q, scale, zero, out, total, channels, inner, period);                                          \
  }

QUANTIZE(f32, float, i8, i8)
QUANTIZE(f32, float, u8, u8)
QUANTIZE(f16, f16, i8, i8)
QUANTIZE(f16, f16, u8, u8)
