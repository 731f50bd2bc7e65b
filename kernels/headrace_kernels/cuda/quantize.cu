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

// A true division, as ONNX has it: the product with the reciprocal rounds some values to their neighbours, so it is
// corrected by what it leaves of x (Markstein, Computation of Elementary Functions on the IBM RISC System/6000, 1990).
// For magnitudes of x below LARGE and of the scale between 1 / LARGE and LARGE, where nothing that matters underflows.
constexpr float LARGE = float(1ull << 60);

__device__ inline float quotient(float x, const Channel& by) {
  const float near = x * by.inverse;
  return fmaf(fmaf(-by.scale, near, x), by.inverse, near);
}

template <class Real, class Q>
__device__ inline void quantize(Real x, const Channel& by, Q* to) {
  *to = rounded<Q>(to_float(x) / by.scale, by.zero);
}

// usual: whether quotient may be used for these scales.
template <class Real, class Q>
__device__ inline void quantize(const Eight<Real>& from, const Channel (&by)[TOGETHER], bool usual, Eight<Q>* to) {
  float x[TOGETHER];
#pragma unroll
  for (int i = 0; i < TOGETHER; ++i) {
    x[i] = to_float(from.of[i]);
    usual &= fabsf(x[i]) < LARGE;
  }
  if (!usual) {  // rare
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) quantize(x[i], by[i], &to->of[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < TOGETHER; ++i) to->of[i] = rounded<Q>(quotient(x[i], by[i]), by[i].zero);
}

template <class Q, class Real>
__device__ inline void dequantize(Q q, const Channel& by, Real* to) {
  store(to, (float(q) - by.zero) * by.scale);
}

template <class Q, class Real>
__device__ inline void dequantize(const Eight<Q>& from, const Channel (&by)[TOGETHER], bool, Eight<Real>* to) {
#pragma unroll
  for (int i = 0; i < TOGETHER; ++i) dequantize(from.of[i], by[i], &to->of[i]);
}

struct Quantizing {
  template <class In, class Out>
  __device__ static void run(const In& from, const Channel& by, Out* to) { quantize(from, by, to); }
  template <class In, class Out>
  __device__ static void run(const Eight<In>& from, const Channel (&by)[TOGETHER], bool usual, Eight<Out>* to) {
    quantize(from, by, usual, to);
  }
};

struct Dequantizing {
  template <class In, class Out>
  __device__ static void run(const In& from, const Channel& by, Out* to) { dequantize(from, by, to); }
  template <class In, class Out>
  __device__ static void run(const Eight<In>& from, const Channel (&by)[TOGETHER], bool usual, Eight<Out>* to) {
    dequantize(from, by, usual, to);
  }
};

// total, period <= 2^30. Block and grid: groups of eight in a row, rows.
template <class Way, class In, class Out, class Zero>
__device__ inline void each(const In* __restrict__ in, const float* __restrict__ scale, const Zero* __restrict__ zero,
                            Out* __restrict__ out, u32 total, u32 channels, u32 inner, u32 period) {
  const u32 rows = aligned_for<TOGETHER>(in) && aligned_for<TOGETHER>(out) ? total / period : 0;
  const u32 first = TOGETHER * (blockIdx.x * blockDim.x + threadIdx.x);
  const u32 begin = blockIdx.y * blockDim.y + threadIdx.y, step = gridDim.y * blockDim.y;
  if (first < period && begin < rows) {
    Channel by[TOGETHER];
    bool usual = true;
    u32 within = 0, channel = 0;
    if (channels > 1) {
      within = first % inner;
      channel = first / inner % channels;
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) {
      by[i] = channel_of(scale, zero, channel);
      usual &= by[i].scale > 1.f / LARGE && by[i].scale < LARGE;
      if (channels > 1 && ++within == inner) {
        within = 0;
        if (++channel == channels) channel = 0;
      }
    }
    for (u32 row = begin; row < rows; row += step) {
      const u32 at = row * period + first;
      const Eight<In> from = *reinterpret_cast<const Eight<In>*>(in + at);
      Eight<Out> to;
      Way::run(from, by, usual, &to);
      *reinterpret_cast<Eight<Out>*>(out + at) = to;
    }
  }
  const u32 block = blockIdx.y * gridDim.x + blockIdx.x, of_block = blockDim.x * blockDim.y;
  const u32 thread = block * of_block + threadIdx.y * blockDim.x + threadIdx.x;
  for (u32 i = rows * period + thread; i < total; i += gridDim.x * gridDim.y * of_block)
    Way::run(in[i], channel_of(scale, zero, channels > 1 ? i / inner % channels : 0u), out + i);
}

#define QUANTIZE(real, Real, integer, Q)                                                                              \
  extern "C" __global__ void __launch_bounds__(256) quantize_##real##_##integer(                                      \
      const Real* x, const float* scale, const Q* zero, Q* out, u32 total, u32 channels, u32 inner, u32 period) {     \
    each<Quantizing>(x, scale, zero, out, total, channels, inner, period);                                            \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256) dequantize_##integer##_##real(                                    \
      const Q* q, const float* scale, const Q* zero, Real* out, u32 total, u32 channels, u32 inner, u32 period) {     \
    each<Dequantizing>(q, scale, zero, out, total, channels, inner, period);                                          \
  }

QUANTIZE(f32, float, i8, i8)
QUANTIZE(f32, float, u8, u8)
QUANTIZE(f16, f16, i8, i8)
QUANTIZE(f16, f16, u8, u8)
