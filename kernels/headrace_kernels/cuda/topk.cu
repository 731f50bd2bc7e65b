// Logits [rows, classes] -> the k greatest of each row in order, as softmax probabilities or as they are.
//
// A row is one warp's, or, if it is long, one block's; it is read once, a good part of it at a time. Each thread knows the
// greatest of its own elements and the sum of the exponentials of all of them, relative to the greatest so far (Milakov
// and Gimelshein, Online normalizer calculation for softmax, 2018). After the first part, the k-th greatest of what the
// lanes have found is a lower bound: few elements reach it, and only those are looked at one by one. Of them each thread
// knows its two greatest. The greatest of all is taken k times; its owner then has its second, and if that is gone and
// there were more looks for the next with the help of its warp. Elements are compared as integers in which the index is
// part, so that ties have an order and all are different.
#include "common.cuh"

constexpr u64 NONE = 0;  // below the key of any element
constexpr int TOGETHER = 4;
constexpr int AHEAD = 8;  // groups of TOGETHER that a thread loads before it looks at the first
constexpr float LARGEST = 3.402823466e38f;

// An integer that is greater for a greater number, 0 for a NaN.
__device__ inline u32 rank_of(float x) {
  x += 0.f;  // -0 becomes 0
  u32 bits;
  memcpy(&bits, &x, sizeof bits);
  return x != x ? 0u : bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

__device__ inline float of_rank(u32 rank) {  // of 0 it is a NaN
  const u32 bits = rank ^ (rank >> 31 ? 0x80000000u : 0xffffffffu);
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

__device__ inline u64 key_of(float x, int index) { return u64(rank_of(x)) << 32 | (0xffffffffu - u32(index)); }

__device__ inline int index_of(u64 key) { return int(0xffffffffu - u32(key)); }

__device__ inline u32 warp_max(u32 value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(ALL_LANES, value);
#else
  for (int by = WARP / 2; by; by /= 2) {
    const u32 other = __shfl_xor_sync(ALL_LANES, value, by);
    value = other > value ? other : value;
  }
  return value;
#endif
}

__device__ inline u64 warp_max(u64 value) {
  const u32 high = warp_max(u32(value >> 32));
  return u64(high) << 32 | warp_max(u32(value >> 32) == high ? u32(value) : 0u);
}

__device__ inline float warp_sum(float value) {
  for (int by = WARP / 2; by; by /= 2) value += __shfl_xor_sync(ALL_LANES, value, by);
  return value;
}

// e to the x, for an x of 0 or less, and 0 where that is below 1.2e-38. It is for sums: an error of x makes one of 1e-5 in
// the smallest that count.
__device__ inline float exponential(float x) {
#ifdef CUDA_HOST_SHIM
  return expf(x);
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.4426950408889634f));
  return result;
#endif
}

// At least k of the elements that `mine` are the lanes' greatest of are not below it; -inf if there are not so many.
__device__ inline float lower_bound(float mine, int k) {
  if (k > WARP) return -INFINITE;
  u32 rest = rank_of(mine), bound = 0;
  for (int i = 0; i < k; ++i) {
    bound = warp_max(rest);
    if (rest == bound) rest = rank_of(-INFINITE);
  }
  return of_rank(bound);
}

// Block: WARP x rows, each warp for itself, if WARPS is 1; else WARP x WARPS for one row.
template <class In, int WARPS>
__device__ inline void top_k(const In* __restrict__ logits, float* __restrict__ values, int* __restrict__ indices,
                             int rows, int classes, int k, int softmax) {
  constexpr int THREADS = WARP * WARPS;
  __shared__ float most_of[WARPS][WARP];
  __shared__ u64 best_of_warp[WARPS];
  __shared__ float sum_of_warp[WARPS];
  const int lane = threadIdx.x, warp = WARPS == 1 ? 0 : threadIdx.y, thread = warp * WARP + lane;
  const int row = WARPS == 1 ? blockIdx.x * blockDim.y + threadIdx.y : blockIdx.x;
  if (row >= rows) return;  // a whole warp, or nobody
  const In* x = logits + i64(row) * classes;

  const bool aligned = aligned_for<TOGETHER>(x) && classes % TOGETHER == 0;
  float most = -INFINITE, second = -INFINITE, scale = -LARGEST, sum = 0.f, bound = -INFINITE;
  int at = -1, second_at = -1, reached = 0;  // reached: how many of its elements are not below the bound
  for (int begin = 0; begin < classes; begin += AHEAD * TOGETHER * THREADS) {
    Together<In, TOGETHER> read[AHEAD];
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i) store(&read[a].of[i], -INFINITE);
    }
    const int mine_from = begin + TOGETHER * thread;
    if (aligned) {
#pragma unroll
      for (int a = 0; a < AHEAD; ++a) {
        const int first = mine_from + a * TOGETHER * THREADS;
        if (first < classes) read[a] = *reinterpret_cast<const Together<In, TOGETHER>*>(x + first);
      }
    } else {
#pragma unroll
      for (int a = 0; a < AHEAD; ++a) {
        const int first = mine_from + a * TOGETHER * THREADS;
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i)
          if (first + i < classes) read[a].of[i] = x[first + i];
      }
    }
    float value[AHEAD][TOGETHER], of_group[AHEAD], greatest = -INFINITE;
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i) value[a][i] = to_float(read[a].of[i]);
      of_group[a] = fmaxf(fmaxf(value[a][0], value[a][1]), fmaxf(value[a][2], value[a][3]));
      greatest = fmaxf(greatest, of_group[a]);
    }
    if (begin == 0) {
      float of_lane = greatest;
      if (WARPS > 1) {
        most_of[warp][lane] = greatest;
        __syncthreads();
        for (int w = 0; w < WARPS; ++w) of_lane = fmaxf(of_lane, most_of[w][lane]);
      }
      bound = lower_bound(of_lane, k);
    }
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      if (!(of_group[a] >= bound)) continue;
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i) {
        reached += value[a][i] >= bound;
        if (value[a][i] >= bound && value[a][i] > second) {  // the first of equals is the greatest
          const int index = mine_from + a * TOGETHER * THREADS + i;
          const bool greater = value[a][i] > most;
          second = greater ? most : value[a][i];
          second_at = greater ? at : index;
          most = greater ? value[a][i] : most;
          at = greater ? index : at;
        }
      }
    }
    if (softmax) {  // of -inf it is 0, of a NaN that
      const float before = scale;
      scale = fmaxf(scale, greatest);
      sum *= exponential(before - scale);
#pragma unroll
      for (int a = 0; a < AHEAD; ++a) {
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) sum += exponential(value[a][i] - scale);
      }
    }
  }
  const bool few = bound == -INFINITE;  // of -inf and NaN some may be needed, and none of those is known
  u64 mine = at < 0 ? NONE : key_of(most, at), spare = second_at < 0 ? NONE : key_of(second, second_at);
  for (int first = TOGETHER * thread; few && at < 0 && first < classes; first += TOGETHER * THREADS) {
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
  const float greatest = of_rank(u32(best >> 32));

  float whole = 1.f;
  if (softmax) {
    whole = warp_sum(sum * exponential(scale - greatest));
    if (WARPS > 1) {
      if (lane == 0) sum_of_warp[warp] = whole;
      __syncthreads();
      whole = 0.f;
      for (int w = 0; w < WARPS; ++w) whole += sum_of_warp[w];
    }
  }

  u64 chosen = NONE;  // of the last places; each lane of the first warp keeps one of them, until it is written
  for (int place = 0;;) {
    const int index = index_of(best), before = place / WARP * WARP;
    if (place % WARP == lane) chosen = best;
    ++place;
    if ((place == k || place % WARP == 0) && warp == 0 && before + lane < place) {
      const int which = index_of(chosen);
      const i64 to = i64(row) * k + before + lane;
      values[to] = softmax ? expf(of_rank(u32(chosen >> 32)) - greatest) / whole : to_float(x[which]);
      indices[to] = which;
    }
    if (place == k) break;
    const int owner = index / TOGETHER % THREADS;
    if (WARPS > 1) __syncthreads();  // all have read the warps' best
    if (owner / WARP == warp) {
      u64 next = __shfl_sync(ALL_LANES, spare, owner % WARP);
      const int known = __shfl_sync(ALL_LANES, reached, owner % WARP);
      if (next == NONE && (known > 2 || few)) {
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
  extern "C" __global__ void __launch_bounds__(256) name(const In* logits, float* values, int* indices, int rows,      \
                                                         int classes, int k, int softmax) {                           \
    top_k<In, WARPS>(logits, values, indices, rows, classes, k, softmax);                                             \
  }

TOP_K(top_k_warp_f32, float, 1)
TOP_K(top_k_warp_f16, f16, 1)
TOP_K(top_k_block_f32, float, 8)
TOP_K(top_k_block_f16, f16, 8)
