// The base of all headers: vectors, memory for each thread, functions that Python can call.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>

// Let Python call `function` as SYMBOL: the library holds its address under the name msde_SYMBOL.
// Its arguments are pointers, Index and double; the last one is the number of threads.
#define EXPORT_AS(symbol, function) \
  extern "C" {                      \
  void* msde_##symbol = reinterpret_cast<void*>(&msde::function); \
  }
// The same for a function of float and of double.
#define EXPORT(name) \
  EXPORT_AS(name##_f32, name<float>) \
  EXPORT_AS(name##_f64, name<double>)

namespace msde {

using Index = std::int64_t;

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, ROWS = 12;  // 24 of 32 registers hold results
#else
constexpr int VECTOR_BYTES = 32, ROWS = 6;  // 12 of 16
#endif

template <class T>
struct Lanes {
  typedef T Vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));
  static constexpr int count = VECTOR_BYTES / sizeof(T);
};
template <class T>
using Vector = typename Lanes<T>::Vector;
template <class T>
Vector<T>* vector_at(T* numbers) {
  return reinterpret_cast<Vector<T>*>(numbers);
}
template <class T>
const Vector<T>* vector_at(const T* numbers) {
  return reinterpret_cast<const Vector<T>*>(numbers);
}
template <class T>
constexpr int COLS = 2 * Lanes<T>::count;  // columns of a block
template <class T>
constexpr Index LINE = 64 / sizeof(T);  // of the cache

// Memory that grows and is kept, one for each thread and use.
template <class T, int use>
T* scratch(Index size) {
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  static thread_local std::unique_ptr<T, Free> memory;
  static thread_local Index capacity = 0;
  if (size > capacity) {
    capacity = (size + 15) / 16 * 16 + 64;
    memory.reset(static_cast<T*>(std::aligned_alloc(64, (capacity * sizeof(T) + 63) / 64 * 64)));
  }
  return memory.get();
}

// The sum of `bytes` / sizeof(T) numbers side by side, by halving.
template <class T, int bytes>
T total(const void* numbers) {
  if constexpr (bytes == sizeof(T)) {
    T one;
    std::memcpy(&one, numbers, sizeof one);
    return one;
  } else {
    typedef T Half __attribute__((vector_size(bytes / 2)));
    Half low, high;
    std::memcpy(&low, numbers, sizeof low);
    std::memcpy(&high, static_cast<const char*>(numbers) + sizeof low, sizeof high);
    low += high;
    return total<T, bytes / 2>(&low);
  }
}

template <class T>
T dot(const T* a, const T* b, Index width) {
  constexpr int L = Lanes<T>::count;
  Vector<T> sums{};
  Index f = 0;
  for (; f + L <= width; f += L) sums += *vector_at(a + f) * *vector_at(b + f);
  T rest = 0;
  for (; f < width; f++) rest += a[f] * b[f];
  return total<T, VECTOR_BYTES>(&sums) + rest;
}

}  // namespace msde
