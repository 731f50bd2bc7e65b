// Floating point <-> 8-bit integers with scale and zero point for each channel: ONNX QuantizeLinear, DequantizeLinear.
//
// A tensor is [outer, channels, inner]. A thread takes four elements that follow one another: one division finds the
// channel of the first, counting those of the others.
#include "common.cuh"

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

// A true division, as ONNX has it: the product with the reciprocal rounds some values to their neighbours. fmaxf of a NaN
// is the other: NaN becomes the lowest value.
template <class Q>
__device__ inline void convert(float x, float scale, float zero, Q* out) {
  *out = Q(fminf(fmaxf(rintf(x / scale) + zero, Limits<Q>::low), Limits<Q>::high));
}
template <class Q>
__device__ inline void convert(f16 x, float scale, float zero, Q* out) {
  convert(to_float(x), scale, zero, out);
}
template <class Real>
__device__ inline void convert_back(int q, float scale, float zero, Real* out) {
  store(out, (float(q) - zero) * scale);
}
__device__ inline void convert(i8 q, float scale, float zero, float* out) { convert_back(q, scale, zero, out); }
__device__ inline void convert(u8 q, float scale, float zero, float* out) { convert_back(q, scale, zero, out); }
__device__ inline void convert(i8 q, float scale, float zero, f16* out) { convert_back(q, scale, zero, out); }
__device__ inline void convert(u8 q, float scale, float zero, f16* out) { convert_back(q, scale, zero, out); }

// total <= 2^30. zero: null for zeros.
template <class In, class Out, class Zero>
__device__ inline void each(const In* __restrict__ in, const float* __restrict__ scale, const Zero* __restrict__ zero,
                            Out* __restrict__ out, u32 total, u32 channels, u32 inner) {
  const bool aligned = aligned_for_four(in) && aligned_for_four(out);
  const u32 step = 4u * gridDim.x * blockDim.x;
  for (u32 first = 4u * (blockIdx.x * blockDim.x + threadIdx.x); first < total; first += step) {
    const u32 count = total - first < 4u ? total - first : 4u;
    u32 within = 0, channel = 0;
    if (channels > 1) {
      within = first % inner;
      channel = first / inner % channels;
    }
    Four<In> from;
    Four<Out> to;
    if (aligned && count == 4u) {
      from = *reinterpret_cast<const Four<In>*>(in + first);
    } else {
      for (u32 i = 0; i < count; ++i) from.of[i] = in[first + i];
    }
#pragma unroll
    for (u32 i = 0; i < 4u; ++i) {
      if (i < count) convert(from.of[i], scale[channel], zero ? float(zero[channel]) : 0.f, &to.of[i]);
      if (channels > 1 && ++within == inner) {
        within = 0;
        if (++channel == channels) channel = 0;
      }
    }
    if (aligned && count == 4u) {
      *reinterpret_cast<Four<Out>*>(out + first) = to;
    } else {
      for (u32 i = 0; i < count; ++i) out[first + i] = to.of[i];
    }
  }
}

#define QUANTIZE(real, Real, integer, Q)                                                                              \
  extern "C" __global__ void quantize_##real##_##integer(const Real* x, const float* scale, const Q* zero, Q* out,    \
                                                         u32 total, u32 channels, u32 inner) {                        \
    each(x, scale, zero, out, total, channels, inner);                                                                \
  }                                                                                                                   \
  extern "C" __global__ void dequantize_##integer##_##real(const Q* q, const float* scale, const Q* zero, Real* out,  \
                                                           u32 total, u32 channels, u32 inner) {                      \
    each(q, scale, zero, out, total, channels, inner);                                                                \
  }

QUANTIZE(f32, float, i8, i8)
QUANTIZE(f32, float, u8, u8)
QUANTIZE(f16, f16, i8, i8)
QUANTIZE(f16, f16, u8, u8)
