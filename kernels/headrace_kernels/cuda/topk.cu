// Logits [rows, classes] -> the k greatest of each row in order, as softmax probabilities or as they are.
//
// A row is one warp's, or, if it is long, one block's; it is read once. Each thread knows the two greatest of its own
// elements, and the sum of the exponentials of all of them, relative to the greatest so far (Milakov and Gimelshein,
// Online normalizer calculation for softmax, 2018). The greatest of all is taken k times; its owner then has its second,
// and if that is gone looks for the next with the help of its warp. Elements are compared as integers in which the index
// is part, so that ties have an order and all are different.
#include "common.cuh"

constexpr u64 NONE = 0;  // below the key of any element
constexpr int TOGETHER = 4;
constexpr float LARGEST = 3.402823466e38f;

__device__ inline u64 key_of(float x, int index) {
  x += 0.f;  // -0 becomes 0
  u32 bits;
  memcpy(&bits, &x, sizeof bits);
  const u32 rank = x != x ? 0u : bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
  return u64(rank) << 32 | (0xffffffffu - u32(index));
}

__device__ inline int index_of(u64 key) { return int(0xffffffffu - u32(key)); }

__device__ inline u64 warp_max(u64 value) {
  for (int by = WARP / 2; by; by /= 2) {
    const u64 other = __shfl_xor_sync(ALL_LANES, value, by);
    value = other > value ? other : value;
  }
  return value;
}

__device__ inline float warp_sum(float value) {
  for (int by = WARP / 2; by; by /= 2) value += __shfl_xor_sync(ALL_LANES, value, by);
  return value;
}

// Block: WARP x rows, each warp for itself, if WARPS is 1; else WARP x WARPS for one row.
template <class In, int WARPS>
__device__ inline void top_k(const In* __restrict__ logits, float* __restrict__ values, int* __restrict__ indices,
                             int rows, int classes, int k, int softmax) {
  constexpr int THREADS = WARP * WARPS;
  __shared__ u64 best_of_warp[WARPS];
  __shared__ float sum_of_warp[WARPS];
  const int lane = threadIdx.x, warp = WARPS == 1 ? 0 : threadIdx.y, thread = warp * WARP + lane;
  const int row = WARPS == 1 ? blockIdx.x * blockDim.y + threadIdx.y : blockIdx.x;
  if (row >= rows) return;  // a whole warp, or nobody
  const In* x = logits + i64(row) * classes;

  const bool aligned = aligned_for<TOGETHER>(x) && classes % TOGETHER == 0;
  float most = -INFINITE, second = -INFINITE, scale = -LARGEST, sum = 0.f;
  int at = -1, second_at = -1;
  for (int first = TOGETHER * thread; first < classes; first += TOGETHER * THREADS) {
    float value[TOGETHER];
    if (aligned) {
      const Together<In, TOGETHER> read = *reinterpret_cast<const Together<In, TOGETHER>*>(x + first);
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i) value[i] = to_float(read.of[i]);
    } else {
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i) value[i] = first + i < classes ? to_float(x[first + i]) : -INFINITE;
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) {
      if (value[i] > second) {  // the first of equals is the greatest
        const bool greater = value[i] > most;
        second = greater ? most : value[i];
        second_at = greater ? at : first + i;
        most = greater ? value[i] : most;
        at = greater ? first + i : at;
      }
    }
    if (softmax) {  // of -inf it is 0, of a NaN that
      const float before = scale;
      scale = fmaxf(scale, most);
      sum *= expf(before - scale);
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i) sum += expf(value[i] - scale);
    }
  }
  u64 mine = at < 0 ? NONE : key_of(most, at), spare = second_at < 0 ? NONE : key_of(second, second_at);
  for (int first = TOGETHER * thread; at < 0 && first < classes; first += TOGETHER * THREADS) {
    for (int i = first; i < first + TOGETHER && i < classes; ++i) {  // rare: nothing but NaN and -inf
      const u64 key = key_of(to_float(x[i]), i);
      mine = key > mine ? key : mine;
    }
  }
  u64 best = warp_max(mine);
  if (WARPS > 1) {
    if (lane == 0) best_of_warp[warp] = best;
    __syncthreads();
    for (int w = 0; w < WARPS; ++w) best = best_of_warp[w] > best ? best_of_warp[w] : best;
  }
  const float greatest = to_float(x[index_of(best)]);

  float whole = 1.f;
  if (softmax) {
    whole = warp_sum(sum * expf(scale - greatest));
    if (WARPS > 1) {
      if (lane == 0) sum_of_warp[warp] = whole;
      __syncthreads();
      whole = 0.f;
      for (int w = 0; w < WARPS; ++w) whole += sum_of_warp[w];
    }
  }

  for (int place = 0;;) {
    const int index = index_of(best);
    if (thread == 0) {
      const float value = to_float(x[index]);
      values[i64(row) * k + place] = softmax ? expf(value - greatest) / whole : value;
      indices[i64(row) * k + place] = index;
    }
    if (++place == k) break;
    const int owner = index / TOGETHER % THREADS;
    if (WARPS > 1) __syncthreads();  // all have read the warps' best
    if (owner / WARP == warp) {
      u64 next = __shfl_sync(ALL_LANES, spare, owner % WARP);
      if (next == NONE) {
        const i64 step = TOGETHER * i64(THREADS);
        i64 i = TOGETHER * owner + lane / TOGETHER * step + lane % TOGETHER;
        for (; i < classes; i += WARP / TOGETHER * step) {
          const u64 key = key_of(to_float(x[i]), int(i));
          if (key < best && key > next) next = key;
        }
        next = warp_max(next);
      }
      if (lane == owner % WARP) {
        mine = next;
        spare = NONE;
      }
      const u64 of_warp = warp_max(mine);
      if (WARPS == 1) best = of_warp;
      else if (lane == 0) best_of_warp[warp] = of_warp;
    }
    if (WARPS > 1) {
      __syncthreads();
      best = NONE;
      for (int w = 0; w < WARPS; ++w) best = best_of_warp[w] > best ? best_of_warp[w] : best;
    }
  }
}

#define TOP_K(name, In, WARPS)                                                                                        \
  extern "C" __global__ void name(const In* logits, float* values, int* indices, int rows, int classes, int k,        \
                                  int softmax) {                                                                      \
    top_k<In, WARPS>(logits, values, indices, rows, classes, k, softmax);                                             \
  }

TOP_K(top_k_warp_f32, float, 1)
TOP_K(top_k_warp_f16, f16, 1)
TOP_K(top_k_block_f32, float, 8)
TOP_K(top_k_block_f16, f16, 8)
