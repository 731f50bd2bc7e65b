// Kernels by name, with their arguments as a GPU's driver takes them: an array of addresses, one for each parameter.
#pragma once
#include <map>
#include <string>
#include <utility>

#include "cuda_host_shim.hpp"

namespace entry {

struct Kernel {
  std::string signature;  // a letter for each parameter: p for a pointer, i, u, l, m for 32 and 64 bits, f, d
  std::function<void(dim3, dim3, size_t, void**)> run;
};

inline std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}

template <class T> constexpr char letter = 0;
template <class T> constexpr char letter<T*> = 'p';
template <> inline constexpr char letter<int> = 'i';
template <> inline constexpr char letter<unsigned> = 'u';
template <> inline constexpr char letter<long long> = 'l';
template <> inline constexpr char letter<unsigned long long> = 'm';
template <> inline constexpr char letter<float> = 'f';
template <> inline constexpr char letter<double> = 'd';

template <class... A, size_t... I>
Kernel kernel(void (*function)(A...), std::index_sequence<I...>) {
  static_assert((letter<A> && ...), "a parameter of a type that has no letter yet");
  return {std::string{letter<A>...}, [function](dim3 grid, dim3 block, size_t shared, void** arguments) {
            host_shim::launch(grid, block, shared, [=] { function(*static_cast<A*>(arguments[I])...); });
          }};
}
template <class... A>
bool add(const char* name, void (*function)(A...)) {
  return kernels().emplace(name, kernel(function, std::index_sequence_for<A...>())).second;
}

}  // namespace entry

#define KERNEL(name) static const bool added_##name = entry::add(#name, name)

extern "C" const char* kernel_signature(const char* name) {
  const auto found = entry::kernels().find(name);
  return found == entry::kernels().end() ? nullptr : found->second.signature.c_str();
}
// What went wrong; null if nothing did.
extern "C" const char* kernel_run(const char* name, const unsigned* grid, const unsigned* block, size_t shared,
                                  void** arguments, int backwards) {
  host_shim::backwards = backwards;
  static std::string wrong;
  try {
    const dim3 blocks(grid[0], grid[1], grid[2]), threads(block[0], block[1], block[2]);
    entry::kernels().at(name).run(blocks, threads, shared, arguments);
    return nullptr;
  } catch (const std::exception& error) {
    wrong = error.what();
    return wrong.c_str();
  }
}
