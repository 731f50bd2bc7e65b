// Runs CUDA kernels on the CPU for tests, with g++ and no CUDA toolkit (C++17, glibc).
//
// Blocks run one after another; the threads of a block are ucontext fibers. Barriers count arrivals, for the block and
// for each warp, so __syncthreads, __syncwarp, shuffles and shared memory keep their meaning even where one warp runs
// ahead of another: each runs as far as it can before the next. Runs are deterministic; with host_shim::backwards blocks,
// warps and lanes come in the reverse order, so that what a missing barrier leaves to chance goes wrong in one of the
// two. A barrier that not every live thread reaches throws std::runtime_error, as do the things that the shim cannot do
// and can detect. Not for speed.
//
// Use: in the kernel's file, #ifdef CUDA_HOST_SHIM / #include "cuda_host_shim.hpp" / #endif; in a test, define
// CUDA_HOST_SHIM, include the kernel's file and call host_shim::launch(grid, block, [=] { kernel(arguments); }).
//
// Dynamic shared memory is host_shim::dynamic_shared, of as many bytes as the launch asks for; each block finds it full
// of 0xa5. Other shared memory keeps what the block before left there, and starts as zeros.
//
// Not here: extern __shared__ (it does not compile), partial warp masks and widths other than 32 (they throw), votes,
// cooperative groups, textures, tensor cores, memory-model races; float sums add in another order than on a GPU.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time, so a static is the block's own
#define __constant__ static
#define __restrict__ __restrict

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace host_shim {

struct Barrier {
  int arrived = 0, live = 0;
  uint64_t generation = 0;
};
struct Fiber {
  ucontext_t context;
  dim3 thread;
  bool done;
  uint64_t exchange;  // what this lane offers in a shuffle
};
constexpr int kWarp = 32, kMaxThreads = 1024;
constexpr size_t kStack = 64 << 10, kMaxShared = 48 << 10, kMaxAlign = 64;

inline std::mutex one_launch;
inline std::vector<Fiber> fibers;
inline std::vector<Barrier> warps;
inline Barrier whole_block;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline dim3 block_index, block_size, grid_size;
inline std::vector<unsigned char> dynamic_memory;
inline unsigned char* dynamic_shared;
inline int current;    // the running fiber, which is the thread's linear index in its block
inline bool backwards;
inline bool progress;  // did any thread get further in this round?

inline bool in_fiber;
inline std::string failure;  // of a fiber, through which no exception can pass

inline Barrier& warp() { return warps[current / kWarp]; }
inline void yield() { swapcontext(&fibers[current].context, &scheduler); }
[[noreturn]] inline void fail(const std::string& what) {
  const dim3 b = block_index;
  failure = "block (" + std::to_string(b.x) + "," + std::to_string(b.y) + "," + std::to_string(b.z) + "): " + what;
  if (!in_fiber) throw std::runtime_error(failure);
  for (;;) yield();  // it is not resumed
}
inline void open_if_complete(Barrier& b) {
  if (b.live && b.arrived >= b.live) {
    b.arrived = 0;
    ++b.generation;
    progress = true;
  }
}
inline void wait(Barrier& b) {
  uint64_t entered = b.generation;
  ++b.arrived;
  progress = true;
  open_if_complete(b);
  while (b.generation == entered) yield();
}
inline void fiber_main() {
  body();
  fibers[current].done = true;
  progress = true;
  --whole_block.live;  // a thread that has returned is not waited for
  --warp().live;
  open_if_complete(whole_block);
  open_if_complete(warp());
  yield();
}
// Lets each thread of a warp run until it waits, and returns how many have ended.
inline int run_warp(int first, int last) {
  int ended = 0;
  for (int turn = first; turn < last; ++turn) {
    current = backwards ? first + last - 1 - turn : turn;
    if (fibers[current].done) continue;
    in_fiber = true;
    swapcontext(&scheduler, &fibers[current].context);
    in_fiber = false;
    if (!failure.empty()) throw std::runtime_error(failure);
    ended += fibers[current].done;
  }
  return ended;
}
inline void run_block(int n, char* stacks) {
  whole_block = Barrier();
  whole_block.live = n;
  warps.assign((n + kWarp - 1) / kWarp, Barrier());
  for (int i = 0; i < n; ++i) {
    Fiber& f = fibers[i];
    f.done = false;
    f.thread = dim3(i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y));
    ++warps[i / kWarp].live;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks + kStack * i;
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = &scheduler;
    makecontext(&f.context, fiber_main, 0);
  }
  int left = n;
  while (left) {
    const int before = left;
    bool any = false;
    for (int turn = 0; turn < (int)warps.size(); ++turn) {
      const int w = backwards ? (int)warps.size() - 1 - turn : turn;
      do {
        progress = false;
        left -= run_warp(w * kWarp, std::min(n, (w + 1) * kWarp));
        any |= progress;
      } while (progress);
    }
    if (left == before && !any)
      fail(std::to_string(left) + " threads wait at a barrier that the others never reach");
  }
}
template <class Kernel>
void launch(dim3 grid, dim3 block, size_t shared_bytes, Kernel&& kernel) {
  std::lock_guard<std::mutex> hold(one_launch);
  failure.clear();
  block_index = dim3(0, 0, 0);
  const long n = (long)block.x * block.y * block.z;
  if (shared_bytes > kMaxShared) fail("a block has at most 48 KiB of dynamic shared memory");
  dynamic_memory.resize(shared_bytes + kMaxAlign);
  dynamic_shared = dynamic_memory.data() + kMaxAlign - (uintptr_t)dynamic_memory.data() % kMaxAlign;
  if (n < 1 || n > kMaxThreads) fail("a block has 1 to 1024 threads");
  fibers = std::vector<Fiber>(n);
  std::unique_ptr<char[]> stacks(new char[kStack * n]);
  body = kernel;
  block_size = block;
  grid_size = grid;
  const uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
  for (uint64_t turn = 0; turn < blocks; ++turn) {
    const uint64_t i = backwards ? blocks - 1 - turn : turn;
    block_index = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    std::fill(dynamic_memory.begin(), dynamic_memory.end(), 0xa5);
    run_block((int)n, stacks.get());
  }
}
template <class Kernel>
void launch(dim3 grid, dim3 block, Kernel&& kernel) {
  launch(grid, block, 0, kernel);
}
template <class T>
T shuffle(unsigned mask, T value, int lane, int width) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "shuffles move at most 8 bytes");
  if (mask != ~0u || width != kWarp) fail("only full-warp shuffles are here (mask 0xffffffff, width 32)");
  const int me = current, first = me / kWarp * kWarp;
  fibers[me].exchange = 0;
  memcpy(&fibers[me].exchange, &value, sizeof value);
  wait(warp());
  T result = value;
  if (lane >= 0 && lane < kWarp && first + lane < (int)fibers.size())
    memcpy(&result, &fibers[first + lane].exchange, sizeof result);
  wait(warp());  // nobody offers the next value before everybody has read this one
  return result;
}

// IEEE 754 binary16 as bits, for what a GPU converts in hardware.
inline float half_to_float(uint16_t half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  float magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY)
                    : exponent     ? ldexpf(1024 + mantissa, exponent - 25)
                                   : ldexpf(mantissa, -24);
  return half & 0x8000 ? -magnitude : magnitude;
}
inline uint16_t float_to_half(float x) {  // to nearest, half to even
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float magnitude = fabsf(x);
  if (std::isnan(x)) return 0x7fff;
  if (magnitude == 0.f) return sign;
  if (magnitude >= 65520.f) return sign | 0x7c00;  // half way between the largest and the next, which there is not
  int exponent;
  frexpf(magnitude, &exponent);                               // magnitude < 2^exponent
  const int step = std::max(exponent - 11, -24);              // of the last place
  const int places = (int)rintf(ldexpf(magnitude, -step));    // exact but for the rounding; 2048 carries by itself
  return sign | (uint16_t)(((step + 24) << 10) + places);
}

}  // namespace host_shim

#define threadIdx (host_shim::fibers[host_shim::current].thread)
#define blockIdx host_shim::block_index
#define blockDim host_shim::block_size
#define gridDim host_shim::grid_size
static const int warpSize = host_shim::kWarp;

inline void __syncthreads() { host_shim::wait(host_shim::whole_block); }
inline void __syncwarp(unsigned mask = ~0u) {
  if (mask != ~0u) host_shim::fail("only __syncwarp of the full warp is here");
  host_shim::wait(host_shim::warp());
}
template <class T>
T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
  return host_shim::shuffle(mask, v, lane & 31, width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
  return host_shim::shuffle(mask, v, (host_shim::current & 31) ^ bits, width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const int me = host_shim::current & 31, lane = me + (int)by;
  return host_shim::shuffle(mask, v, lane < 32 ? lane : me, width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const int me = host_shim::current & 31, lane = me - (int)by;
  return host_shim::shuffle(mask, v, lane >= 0 ? lane : me, width);
}
template <class T>
T atomicAdd(T* p, T v) {
  T old = *p;
  *p = old + v;
  return old;
}
template <class T>
T atomicMax(T* p, T v) {
  T old = *p;
  if (old < v) *p = v;
  return old;
}
inline int max(int a, int b) { return a < b ? b : a; }
inline int min(int a, int b) { return b < a ? b : a; }
template <class T>
T __ldg(const T* p) {
  return *p;
}
