// Matrices of pairs of bfloat16, and their products by the tiles of AMX.
//
// A pair holds the numbers of k and k + 1. Both factors are packed before they are multiplied, and
// rounded as they are packed.
#pragma once

#include "base.hpp"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif
// Tiles are packed by AVX-512, which a virtual machine may hide where it shows AMX.
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define MSDE_HAS_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace msde {

using Pair = std::uint32_t;  // the number of k in the lower half

#if defined(MSDE_HAS_TILES)
// A process must ask Linux for tiles: 0x1023 is ARCH_REQ_XCOMP_PERM, 18 the state of tiles.
inline const bool TILES = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
constexpr bool TILES = false;
#endif

}  // namespace msde

extern "C" {
int msde_bfloat16 = 0;  // whether products are made of pairs; Python sets it before a call
int msde_tiles = msde::TILES;
}

namespace msde {

// A matrix as a pointer and the distances between rows and between columns, of which one is 1.
template <class T>
struct View {
  const T* data;
  Index row, column;
  const T* at(Index i, Index j) const { return data + i * row + j * column; }
  View from(Index i) const { return {data ? at(i, 0) : data, row, column}; }
};

template <class T>
bool in_pairs() {
#if defined(__AVX512BF16__)
  return std::is_same_v<T, float> && msde_bfloat16;
#else
  return false;
#endif
}

constexpr Index SIDE = 16;  // rows and columns of a tile of c; pairs of k in a tile of a or b

constexpr Index round_up(Index count, Index multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// Pairs that `depth` numbers are packed to. Tiles are filled up with zeros, but for less than 16
// numbers they are shorter: so pairs never take more room than the numbers as floats.
inline Index pair_count(Index depth) {
  const Index pairs = (depth + 1) / 2;
  return TILES && depth >= SIDE ? round_up(pairs, SIDE) : pairs;
}

#if defined(__AVX512BF16__)

inline __m512 load(const float* from, Index count) {
  const Index some = std::clamp<Index>(count, 0, 16);
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << some) - 1), from);
}

// 16 pairs of numbers that follow each other; zeros after the first `count` numbers.
inline __m512i pairs_along(const float* from, Index count) {
  return (__m512i)_mm512_cvtne2ps_pbh(load(from + 16, count - 16), load(from, count));
}

// 16 pairs of a number in row k of b and the one in row k + 1; zeros after `count` pairs, and in
// the place of rows from `depth` on.
inline __m512i pairs_across(View<float> b, Index k, Index j, Index depth, Index count) {
  const __m512 low = load(b.at(k, j), k < depth ? count : 0);
  const __m512 high = load(b.at(k + 1, j), k + 1 < depth ? count : 0);
  typedef short Halves __attribute__((vector_size(64)));
  constexpr Halves turns = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16((__m512i)turns, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

// Exchange the blocks of `size` x `size` beside the diagonal of each block twice as large.
template <int size>
void exchange(__m512i (&rows)[16]) {
  typedef int Numbers __attribute__((vector_size(64)));
  constexpr Numbers lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Numbers above = lanes + (((lanes & size) != 0) & (16 - size));
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) {
    if (i & size) continue;
    const __m512i one = rows[i], other = rows[i + size];
    rows[i] = _mm512_permutex2var_epi32(one, (__m512i)above, other);
    rows[i + size] = _mm512_permutex2var_epi32(one, (__m512i)(above + size), other);
  }
}

inline void transpose(__m512i (&rows)[16]) {
  exchange<8>(rows);
  exchange<4>(rows);
  exchange<2>(rows);
  exchange<1>(rows);
}

inline void store(Pair* to, __m512i pairs, Index count) {
  if (count >= 16) return _mm512_storeu_si512(to, pairs);
  _mm512_mask_storeu_epi32(to, static_cast<__mmask16>((1u << count) - 1), pairs);
}

// Round b, (depth, width), to (pair_count(depth), columns), with zeros where b has nothing.
inline void pack_pairs(View<float> b, Index depth, Index width, Index columns, Pair* out) {
  const Index count = pair_count(depth);
  for (Index j = 0; j < columns; j += 16) {
    const Index some = std::min<Index>(16, columns - j);
    if (b.column == 1) {
      for (Index k = 0; k < count; k++)
        store(out + k * columns + j, pairs_across(b, 2 * k, j, depth, width - j), some);
      continue;
    }
    for (Index k = 0; k < count; k += 16) {
      __m512i rows[16];
      for (int i = 0; i < 16; i++)
        rows[i] = pairs_along(b.at(2 * k, j + i), j + i < width ? depth - 2 * k : 0);
      transpose(rows);
      for (Index i = 0; i < std::min<Index>(16, count - k); i++)
        store(out + (k + i) * columns + j, rows[i], some);
    }
  }
}

// Round a, (rows, depth), to (rows, pair_count(depth)).
inline void pack_rows(View<float> a, Index rows, Index depth, Pair* out) {
  const Index count = pair_count(depth);
  for (Index k = 0; k < count; k += 16) {
    const Index some = std::min<Index>(16, count - k);
    if (a.column == 1) {
      for (Index i = 0; i < rows; i++)
        store(out + i * count + k, pairs_along(a.at(i, 2 * k), depth - 2 * k), some);
      continue;
    }
    for (Index i = 0; i < rows; i += 16) {
      __m512i of_k[16];
      for (int n = 0; n < 16; n++)
        of_k[n] = pairs_across({a.data, a.column, 1}, 2 * (k + n), i, depth, rows - i);
      transpose(of_k);
      for (Index n = 0; n < std::min<Index>(16, rows - i); n++)
        store(out + (i + n) * count + k, of_k[n], some);
    }
  }
}

#endif

#if defined(MSDE_HAS_TILES)

// GCC does not know that tiles are loaded from memory: what was written before must be there.
inline void finish_writing() { asm volatile("" ::: "memory"); }

// Sets the shapes of this thread's tiles, for as long as it lives: 0 to 3 are of c, 4 and 5 of a,
// 6 and 7 of b. `pairs` is 0 where a product is not made of pairs: then it does nothing.
class Tiles {
 public:
  explicit Tiles(Index pairs) : set(TILES && pairs > 0) {
    if (!set) return;
    struct {
      std::uint8_t palette = 1, start = 0, unused[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } shapes;
    const Index deep = std::min(SIDE, pairs);
    for (int n = 0; n < 8; n++) {
      shapes.row_bytes[n] = 4 * (n == 4 || n == 5 ? deep : SIDE);
      shapes.rows[n] = n >= 6 ? deep : SIDE;
    }
    finish_writing();
    _tile_loadconfig(&shapes);
  }
  ~Tiles() {
    if (set) _tile_release();
  }
  Tiles(const Tiles&) = delete;

 private:
  const bool set;
};

// c (rows, width) = [c +] what tile n of c holds, by way of `room` where that is not a whole tile.
template <int n>
void put(float* c, Index ldc, Index rows, Index width, bool add) {
  alignas(64) float room[SIDE * SIDE];
  const bool whole = !add && rows >= SIDE && width >= SIDE;
  float* to = whole ? c : room;
  const Index bytes = 4 * (whole ? ldc : SIDE);
  if constexpr (n == 0) _tile_stored(0, to, bytes);
  if constexpr (n == 1) _tile_stored(1, to, bytes);
  if constexpr (n == 2) _tile_stored(2, to, bytes);
  if constexpr (n == 3) _tile_stored(3, to, bytes);
  if (whole) return;
  const __mmask16 some = static_cast<__mmask16>((1u << std::min(SIDE, width)) - 1);
  for (Index i = 0; i < std::min(SIDE, rows); i++) {
    __m512 sum = _mm512_load_ps(room + i * SIDE);
    if (add) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(some, c + i * ldc), sum);
    _mm512_mask_storeu_ps(c + i * ldc, some, sum);
  }
}

// c (rows, width) = [c +] a (rows, pairs) panel (pairs, 32), of at most 32 rows and columns; the
// memory of a goes on to the end of a tile. The caller holds `Tiles`.
template <bool tall, bool wide>
void tile_block(const Pair* a, Index lda, Index pairs, const Pair* panel, float* c, Index ldc,
                Index rows, Index width, bool add) {
  finish_writing();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (Index k = 0; k < pairs; k += SIDE, panel += SIDE * 2 * SIDE) {
    _tile_loadd(4, a + k, 4 * lda);
    _tile_loadd(6, panel, 4 * 2 * SIDE);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (tall) {
      _tile_loadd(5, a + SIDE * lda + k, 4 * lda);
      _tile_dpbf16ps(1, 5, 6);
    }
    if constexpr (wide) {
      _tile_loadd(7, panel + SIDE, 4 * 2 * SIDE);
      _tile_dpbf16ps(2, 4, 7);
      if constexpr (tall) _tile_dpbf16ps(3, 5, 7);
    }
  }
  put<0>(c, ldc, rows, width, add);
  if constexpr (tall) put<1>(c + SIDE * ldc, ldc, rows - SIDE, width, add);
  if constexpr (wide) put<2>(c + SIDE, ldc, rows, width - SIDE, add);
  if constexpr (tall && wide) put<3>(c + SIDE * ldc + SIDE, ldc, rows - SIDE, width - SIDE, add);
}

// The same for any number of rows.
inline void tile_stripe(const Pair* a, Index lda, Index pairs, const Pair* panel, float* c,
                        Index ldc, Index rows, Index width, bool add) {
  for (Index i = 0; i < rows; i += 2 * SIDE, a += 2 * SIDE * lda, c += 2 * SIDE * ldc) {
    const Index count = rows - i;
    const auto multiply = count > SIDE ? (width > SIDE ? tile_block<true, true>
                                                       : tile_block<true, false>)
                                       : (width > SIDE ? tile_block<false, true>
                                                       : tile_block<false, false>);
    multiply(a, lda, pairs, panel, c, ldc, count, width, add);
  }
}

#else

struct Tiles {
  explicit Tiles(Index) {}
};

#endif

// For other numbers than float, and other processors: compiled, never called.
template <class T>
void pack_pairs(View<T>, Index, Index, Index, Pair*) {}
template <class T>
void pack_rows(View<T>, Index, Index, Pair*) {}
template <class T>
void tile_stripe(const Pair*, Index, Index, const Pair*, T*, Index, Index, Index, bool) {}

}  // namespace msde
