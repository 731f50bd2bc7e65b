// A batch [rows, features] -> count, missing, mean, sum of squares, minimum, maximum and histogram of each feature.
//
// `feature_partials` makes them of as many rows as a block is given, but adds its histogram to the running one itself,
// for integers add up in any order. `feature_merge` merges what the blocks found into the running statistics in FP64,
// always in the same order, so that results do not depend on which block came first.
#include "common.cuh"

constexpr int LINES = 16;  // threads that share the rows of a feature
constexpr int AHEAD = 16;  // values that a thread loads before it looks at the first

// Sums of the distances from `shift`, which is the first of the values: Chan, Golub and LeVeque, Algorithms for Computing
// the Sample Variance, 1983, "shifted data". No division for each value; and as the shift is one of the values, the sum
// of squares is at most count + 1 times that about the mean, which bounds what cancels in FP32.
struct Partial {
  int count, missing;
  float shift, sum, squares, minimum, maximum;
};

__device__ inline void add(Partial& to, float x) {
  if (!to.count) to.shift = x;
  ++to.count;
  const float distance = x - to.shift;
  to.sum += distance;
  to.squares += distance * distance;
  to.minimum = fminf(to.minimum, x);
  to.maximum = fmaxf(to.maximum, x);
}

__device__ inline void add(Partial& to, const Partial& from) {
  to.missing += from.missing;
  to.minimum = fminf(to.minimum, from.minimum);
  to.maximum = fmaxf(to.maximum, from.maximum);
  if (!from.count) return;
  if (!to.count) to.shift = from.shift;
  const float by = from.shift - to.shift, moved = float(from.count) * by;
  to.count += from.count;
  to.sum += from.sum + moved;
  to.squares += from.squares + by * (2.f * from.sum + moved);
}

struct Moments {
  i64 count;
  double mean, m2;
};

// Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.
__device__ inline void merge(Moments& to, const Moments& from) {
  if (!from.count) return;
  const i64 total = to.count + from.count;
  const double share = double(from.count) / double(total), distance = from.mean - to.mean;
  to.mean += distance * share;
  to.m2 += from.m2 + distance * distance * double(to.count) * share;
  to.count = total;
}

// Block: 32 features x LINES. grid: features, pieces of rows_of_block rows. factor: bins / (high - low).
// histogram [features, bins + 2]: added to. partials [features, pieces]. Shared memory: 32 x (bins + 2) u32.
template <class In>
__device__ inline void feature_partials(const In* __restrict__ x, const float* __restrict__ low,
                                        const float* __restrict__ high, const float* __restrict__ factor,
                                        u64* __restrict__ histogram, Partial* __restrict__ partials, int rows,
                                        int features, int rows_of_block, int bins) {
  DYNAMIC_SHARED(u32, counted);  // [bins + 2][WARP]: a bank of its own for each feature
  __shared__ Partial of_line[LINES][WARP];
  const int lane = threadIdx.x, line = threadIdx.y, feature = blockIdx.x * WARP + lane;
  const bool here = feature < features;
  for (int slot = line; slot < bins + 2; slot += LINES) counted[slot * WARP + lane] = 0;
  __syncthreads();

  Partial mine = {0, 0, 0.f, 0.f, 0.f, INFINITE, -INFINITE};
  if (here) {
    const float from = low[feature], to = high[feature], by = factor[feature];
    u32* const first_bin = counted + WARP + lane;  // behind what is below
    const auto count = [&](float value) {
      int bin = int(fminf((value - from) * by, float(bins - 1)));
      bin = value >= from ? bin : -1;
      bin = value > to ? bins : bin;
      atomicAdd(&first_bin[bin * WARP], 1u);
    };
    const auto look_at = [&](float value) {
      if (value != value) {
        ++mine.missing;
        return;
      }
      count(value);
      if (fabsf(value) < INFINITE) add(mine, value);
    };
    const int first = blockIdx.y * rows_of_block;
    const int last = rows_of_block < rows - first ? first + rows_of_block : rows;
    const In* next = x + i64(first + line) * features + feature;
    const i64 step = i64(LINES) * features;
    int row = first + line;
    for (; row + (AHEAD - 1) * LINES < last; row += AHEAD * LINES) {
      In ahead[AHEAD];
#pragma unroll
      for (int i = 0; i < AHEAD; ++i, next += step) ahead[i] = *next;
      // As in `add`, but for all together: where one is no number or infinite, so is the sum.
      if (!mine.count) mine.shift = to_float(ahead[0]);
      float sum = 0.f, squares = 0.f, minimum = INFINITE, maximum = -INFINITE;
#pragma unroll
      for (int i = 0; i < AHEAD; ++i) {
        const float value = to_float(ahead[i]), distance = value - mine.shift;
        sum += distance;
        squares += distance * distance;
        minimum = fminf(minimum, value);
        maximum = fmaxf(maximum, value);
      }
      if (fabsf(sum) < INFINITE) {
        mine.count += AHEAD;
        mine.sum += sum;
        mine.squares += squares;
        mine.minimum = fminf(mine.minimum, minimum);
        mine.maximum = fmaxf(mine.maximum, maximum);
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) count(to_float(ahead[i]));
      } else {
#pragma unroll 1
        for (int i = AHEAD; i; --i) look_at(to_float(next[-i * step]));
      }
    }
    for (; row < last; row += LINES, next += step) look_at(to_float(*next));
  }
  of_line[line][lane] = mine;
  __syncthreads();
  if (!here) return;
  for (int slot = line; slot < bins + 2; slot += LINES) {
    const u32 count = counted[slot * WARP + lane];
    if (count) atomicAdd(&histogram[i64(feature) * (bins + 2) + slot], u64(count));
  }
  if (line) return;
  for (int other = 1; other < LINES; ++other) add(mine, of_line[other][lane]);
  partials[i64(feature) * gridDim.y + blockIdx.y] = mine;
}

// A warp for each feature: each lane merges every 32nd piece, then the lanes are merged by halves.
extern "C" __global__ void feature_merge(const Partial* __restrict__ partials, i64* __restrict__ count,
                                         i64* __restrict__ missing, double* __restrict__ mean, double* __restrict__ m2,
                                         float* __restrict__ minimum, float* __restrict__ maximum, int pieces,
                                         int features) {
  const int lane = threadIdx.x, feature = blockIdx.x * blockDim.y + threadIdx.y;
  if (feature >= features) return;  // a whole warp
  Moments all = {0, 0., 0.};
  i64 lost = 0;
  float least = INFINITE, most = -INFINITE;
  for (int piece = lane; piece < pieces; piece += WARP) {
    const Partial& next = partials[i64(feature) * pieces + piece];
    lost += next.missing;
    least = fminf(least, next.minimum);
    most = fmaxf(most, next.maximum);
    if (!next.count) continue;
    const double of_each = double(next.sum) / next.count;
    merge(all, {next.count, next.shift + of_each, fmax(next.squares - of_each * next.sum, 0.)});
  }
  for (int by = WARP / 2; by; by /= 2) {
    const Moments other = {__shfl_down_sync(ALL_LANES, all.count, by), __shfl_down_sync(ALL_LANES, all.mean, by),
                           __shfl_down_sync(ALL_LANES, all.m2, by)};
    const i64 other_lost = __shfl_down_sync(ALL_LANES, lost, by);
    const float other_least = __shfl_down_sync(ALL_LANES, least, by);
    const float other_most = __shfl_down_sync(ALL_LANES, most, by);
    if (lane >= by) continue;  // what the upper half would find is of no use
    merge(all, other);
    lost += other_lost;
    least = fminf(least, other_least);
    most = fmaxf(most, other_most);
  }
  if (lane) return;
  Moments state = {count[feature], mean[feature], m2[feature]};
  merge(state, all);
  count[feature] = state.count;
  mean[feature] = state.mean;
  m2[feature] = state.m2;
  missing[feature] += lost;
  minimum[feature] = fminf(minimum[feature], least);
  maximum[feature] = fmaxf(maximum[feature], most);
}

#define FEATURE_PARTIALS(name, In)                                                                                    \
  extern "C" __global__ void __launch_bounds__(512, 2) name(                                                          \
      const In* x, const float* low, const float* high, const float* factor, u64* histogram, Partial* partials,       \
      int rows, int features, int rows_of_block, int bins) {                                                          \
    feature_partials(x, low, high, factor, histogram, partials, rows, features, rows_of_block, bins);                 \
  }

FEATURE_PARTIALS(feature_partials_f32, float)
FEATURE_PARTIALS(feature_partials_f16, f16)
