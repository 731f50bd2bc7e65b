// Ragged rows -> a padded batch with its mask and lengths, and back.
//
// A row is contiguous on both sides, so that elements and trailing dimensions do not matter: it is moved in units of 1 to
// 16 bytes, the largest that an item is a multiple of. What is in a row is told by the index within it alone.
#include "common.cuh"

struct alignas(16) u128 {
  u64 low, high;
};

__device__ inline int kept(const i64* offsets, int row, int length) {
  const i64 count = offsets[row + 1] - offsets[row];
  return int(count < 0 ? 0 : count > length ? length : count);
}

// one: the bits of 1 in the type that is stored.
__device__ inline void store_bits(void* where, i64 index, int bytes, u64 bits) {
  if (bytes == 1) static_cast<u8*>(where)[index] = u8(bits);
  if (bytes == 2) static_cast<u16*>(where)[index] = u16(bits);
  if (bytes == 4) static_cast<u32*>(where)[index] = u32(bits);
  if (bytes == 8) static_cast<u64*>(where)[index] = bits;
}

template <class Unit>
__device__ inline Unit padding(u64 low, u64) {
  return Unit(low);
}
template <>
__device__ inline u128 padding<u128>(u64 low, u64 high) {
  return u128{low, high};
}

// grid: units of a row, rows. mask_bytes, lengths_bytes: of an element; 0: not asked for. pad_low, pad_high: a unit of it.
template <class Unit>
__device__ inline void gather(const Unit* __restrict__ values, const i64* __restrict__ offsets, Unit* __restrict__ out,
                              void* mask, void* lengths, int rows, int length, int units, int mask_bytes, u64 mask_one,
                              int lengths_bytes, u64 pad_low, u64 pad_high) {
  const int first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
  const i64 row_units = i64(length) * units;
  const Unit pad = padding<Unit>(pad_low, pad_high);
  for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += gridDim.y * blockDim.y) {
    const int count = kept(offsets, row, length);
    const i64 full = i64(count) * units;
    const Unit* source = values + offsets[row] * units;
    Unit* target = out + row * row_units;
    for (i64 i = first; i < row_units; i += step) target[i] = i < full ? source[i] : pad;
    if (mask_bytes)
      for (i64 i = first; i < length; i += step)
        store_bits(mask, i64(row) * length + i, mask_bytes, i < count ? mask_one : 0);
    if (lengths_bytes && first == 0) store_bits(lengths, row, lengths_bytes, u64(count));
  }
}

template <class Unit>
__device__ inline void scatter(const Unit* __restrict__ padded, const i64* __restrict__ offsets,
                               Unit* __restrict__ out, int rows, int length, int units) {
  const int first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
  for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += gridDim.y * blockDim.y) {
    const i64 full = i64(kept(offsets, row, length)) * units;
    const Unit* source = padded + row * (i64(length) * units);
    Unit* target = out + offsets[row] * units;
    for (i64 i = first; i < full; i += step) target[i] = source[i];
  }
}

#define RAGGED(bytes, Unit)                                                                                           \
  extern "C" __global__ void gather_##bytes(const Unit* values, const i64* offsets, Unit* out, void* mask,            \
                                            void* lengths, int rows, int length, int units, int mask_bytes,           \
                                            u64 mask_one, int lengths_bytes, u64 pad_low, u64 pad_high) {             \
    gather(values, offsets, out, mask, lengths, rows, length, units, mask_bytes, mask_one, lengths_bytes, pad_low,    \
           pad_high);                                                                                                 \
  }                                                                                                                   \
  extern "C" __global__ void scatter_##bytes(const Unit* padded, const i64* offsets, Unit* out, int rows, int length, \
                                             int units) {                                                             \
    scatter(padded, offsets, out, rows, length, units);                                                               \
  }

RAGGED(1, u8)
RAGGED(2, u16)
RAGGED(4, u32)
RAGGED(8, u64)
RAGGED(16, u128)
