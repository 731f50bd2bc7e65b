// UINT8 images [height, width, channels] of differing sizes -> a normalised batch [N, channels, height, width].
//
// A thread makes all channels of an output pixel, in one pass over the image: it weighs the window of the image that the
// triangle filter covers. A row of the table says where an image lies, and where it goes (headrace_kernels.images).
#include "common.cuh"

struct Placement {
  i64 offset, height, width, resized_height, resized_width, top, left;
};

// The source positions start to stop under the filter of one output position, and their weights.
struct Window {
  int start, stop, base;
  float fraction, narrow;

  // source, resized < 32768, so that 32 bits hold the position in units of half an output pixel. The centre is a whole
  // number and a fraction: as one FP32 it would lose precision in large images.
  __device__ Window(int source, int resized, int position, bool antialias) {
    if (source == resized) {  // as it is: this pixel alone
      start = base = position;
      stop = position + 1;
      fraction = 0.5f;
      narrow = 1.f;
      return;
    }
    const u32 doubled = (2u * position + 1u) * source, unit = 2u * resized;
    base = doubled / unit;
    fraction = float(doubled % unit) / float(unit);
    const float widen = antialias ? fmaxf(float(source) / float(resized), 1.f) : 1.f;
    start = max(base + int(floorf(fraction - widen + 0.5f)), 0);
    stop = min(base + int(floorf(fraction + widen + 0.5f)), source);
    narrow = 1.f / widen;
  }
  __device__ float weight(int at) const {
    return fmaxf(1.f - fabsf((float(at - base) + (0.5f - fraction)) * narrow), 0.f);
  }
  __device__ float total() const {
    float sum = 0.f;
    for (int at = start; at < stop; ++at) sum += weight(at);
    return sum;
  }
};

// An image that keeps its size is moved in groups of so many pixels, for that is bound by memory: one that is resized
// is not, and has a thread for each pixel at a time.
constexpr int TOGETHER = 4;

template <class Out, int CHANNELS>
__device__ inline void image_batch(const u8* __restrict__ pixels, const Placement* __restrict__ table,
                                   Out* __restrict__ out, int height, int width, int antialias, int swap, float pad,
                                   const float (&factor)[3], const float (&shift)[3]) {
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  if (y >= height) return;
  const Placement place = table[blockIdx.z];
  const i64 plane = i64(height) * width;
  Out* const line = out + blockIdx.z * (CHANNELS * plane) + i64(y) * width;
  const i64 row = y - place.top;
  const bool beside = place.height <= 0 || place.width <= 0 || row < 0 || row >= place.resized_height;

  const auto weigh = [&](int x) {
    const i64 column = x - place.left;
    if (beside || column < 0 || column >= place.resized_width) {
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) store(line + c * plane + x, pad * factor[c] + shift[c]);
      return;
    }
    const Window down(int(place.height), int(place.resized_height), int(row), antialias);
    const Window across(int(place.width), int(place.resized_width), int(column), antialias);
    float sum[CHANNELS] = {};
    for (int v = down.start; v < down.stop; ++v) {
      const u8* source = pixels + place.offset + (v * place.width + across.start) * CHANNELS;
      float part[CHANNELS] = {};
      for (int u = across.start; u < across.stop; ++u, source += CHANNELS) {
        const float weight = across.weight(u);
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) part[c] += weight * float(source[c]);
      }
      const float weight = down.weight(v);
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) sum[c] += weight * part[c];
    }
    const float to_mean = 1.f / (down.total() * across.total());
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
      const float value = (swap ? sum[CHANNELS - 1 - c] : sum[c]) * to_mean;
      store(line + c * plane + x, value * factor[c] + shift[c]);
    }
  };

  const auto move = [&](int x) {  // TOGETHER pixels from x on, all of them of the image
    const u8* source = pixels + place.offset + (row * place.width + x - place.left) * CHANNELS;
    Together<u8, TOGETHER> read[CHANNELS];
    if (aligned_for<TOGETHER>(source)) {
#pragma unroll
      for (int i = 0; i < CHANNELS; ++i) read[i] = reinterpret_cast<const Together<u8, TOGETHER>*>(source)[i];
    } else {
#pragma unroll
      for (int i = 0; i < CHANNELS * TOGETHER; ++i) read[i / TOGETHER].of[i % TOGETHER] = source[i];
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {  // of the image
      const float by = swap ? factor[CHANNELS - 1 - c] : factor[c], plus = swap ? shift[CHANNELS - 1 - c] : shift[c];
      Out* const target = line + (swap ? CHANNELS - 1 - c : c) * plane + x;
      Together<Out, TOGETHER> made;
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i) {
        const int at = i * CHANNELS + c;
        store(&made.of[i], float(read[at / TOGETHER].of[at % TOGETHER]) * by + plus);
      }
      if (aligned_for<TOGETHER>(target)) {
        *reinterpret_cast<Together<Out, TOGETHER>*>(target) = made;
      } else {
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) target[i] = made.of[i];
      }
    }
  };

  const bool same = !beside && place.height == place.resized_height && place.width == place.resized_width;
  const int together = same ? TOGETHER : 1, step = together * gridDim.x * blockDim.x;
  for (int x = together * (blockIdx.x * blockDim.x + threadIdx.x); x < width; x += step) {
    if (same && x >= place.left && x + TOGETHER <= place.left + place.width && x + TOGETHER <= width) {
      move(x);
    } else {
      for (int i = x; i < x + together && i < width; ++i) weigh(i);
    }
  }
}

// grid: columns, rows, images. factor and shift: of each output channel.
#define IMAGE_BATCH(name, Out, CHANNELS)                                                                              \
  extern "C" __global__ void __launch_bounds__(256) name(                                                             \
      const u8* pixels, const Placement* table, Out* out, int height, int width, int antialias, int swap, float pad,  \
      float factor0, float factor1, float factor2, float shift0, float shift1, float shift2) {                        \
    const float factor[3] = {factor0, factor1, factor2}, shift[3] = {shift0, shift1, shift2};                         \
    image_batch<Out, CHANNELS>(pixels, table, out, height, width, antialias, swap, pad, factor, shift);               \
  }

IMAGE_BATCH(image_batch_c1_f32, float, 1)
IMAGE_BATCH(image_batch_c3_f32, float, 3)
IMAGE_BATCH(image_batch_c1_f16, f16, 1)
IMAGE_BATCH(image_batch_c3_f16, f16, 3)
