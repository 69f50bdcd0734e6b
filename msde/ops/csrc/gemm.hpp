// Products of matrices of small and middle size.
//
// The innermost loop keeps a block of ROWS x COLS results in registers and adds one outer product
// a step: c_ij += a_ik b_kj. A result is summed over k in one order, by any thread, so the bits do
// not depend on the number of threads.
//
// Where Python asks for it and the processor can, factors are rounded to bfloat16, and a step takes
// a Pair of them; sums are float. A packed panel of pairs stands where that of floats would, which
// is never smaller: see `pair_count`.
#pragma once

#include "bfloat16.hpp"

namespace msde {

constexpr Index TILE = 8 * ROWS;  // rows of a layer whose hidden numbers stay in cache
constexpr Index DEPTH = 384;  // steps of k at once: a panel of b, DEPTH x COLS, stays in cache

template <class T>
constexpr Index panels(Index columns) {
  return (columns + COLS<T> - 1) / COLS<T>;
}

// Round a, (rows, depth), to pairs in memory of this thread; nothing where products are not made of
// pairs or there is nothing to multiply. The memory goes on to the end of a tile. Its rows beyond a
// are not set: a row of c depends on its own row of a alone.
template <class T>
View<Pair> pairs_of(View<T> a, Index rows, Index depth) {
  if (!in_pairs<T>() || depth == 0) return {};
  const Index count = pair_count(depth);
  Pair* out = scratch<Pair, 13>(round_up(rows, SIDE) * count);
  pack_rows(a, rows, depth, out);
  return {out, count, 1};
}

// Rows that are multiplied at once.
template <class T>
Index block_rows() {
  return TILES && in_pairs<T>() ? 2 * SIDE : ROWS;
}

// Copy one panel, COLS columns of b from `first` on, to (depth, COLS), padded with zeros.
template <class T>
void pack_panel(View<T> b, Index depth, Index columns, Index first, T* out) {
  const Index width = std::min<Index>(COLS<T>, columns - first);
  if (in_pairs<T>())
    return pack_pairs(View<T>{b.at(0, first), b.row, b.column}, depth, width, COLS<T>,
                      reinterpret_cast<Pair*>(out));
  if (b.column == 1 && width == COLS<T>) {
    for (Index k = 0; k < depth; k++)
      std::memcpy(out + k * COLS<T>, b.at(k, first), sizeof(T) * COLS<T>);
    return;
  }
  if (width < COLS<T>) std::fill(out, out + depth * COLS<T>, T(0));
  if (b.column == 1) {
    for (Index k = 0; k < depth; k++)
      std::memcpy(out + k * COLS<T>, b.at(k, first), sizeof(T) * width);
    return;
  }
  constexpr Index step = 16;  // of k, so that the lines written to stay in cache
  for (Index k0 = 0; k0 < depth; k0 += step)
    for (Index j = 0; j < width; j++) {
      const T* column = b.at(k0, first + j);
      for (Index k = 0; k < std::min(step, depth - k0); k++)
        out[(k0 + k) * COLS<T> + j] = column[k * b.row];
    }
}

// Pack all of b, (depth, columns): panel after panel of (depth, COLS). Where the numbers of a row
// stand side by side, rows are read one after another: the processor fetches ahead.
template <class T>
void pack(View<T> b, Index depth, Index columns, T* out) {
  const Index whole = b.column == 1 && !in_pairs<T>() ? columns / COLS<T> : 0;
  for (Index k = 0; k < depth; k++)
    for (Index p = 0; p < whole; p++)
      std::memcpy(out + (p * depth + k) * COLS<T>, b.at(k, p * COLS<T>), sizeof(T) * COLS<T>);
  for (Index p = whole; p < panels<T>(columns); p++)
    pack_panel(b, depth, columns, p * COLS<T>, out + p * depth * COLS<T>);
}

// Pack a^T with a (depth, rows), `stride` apart: block after block of (depth, ROWS), the last one
// may be narrower.
template <class T>
void pack_transposed(const T* a, Index stride, Index depth, Index rows, T* out) {
  const Index whole = rows / ROWS * ROWS, rest = rows - whole;
  for (Index k = 0; k < depth; k++, a += stride) {
    for (Index i = 0; i < whole; i += ROWS)
      std::memcpy(out + i * depth + k * ROWS, a + i, sizeof(T) * ROWS);
    if (rest) std::memcpy(out + whole * depth + k * rest, a + whole, sizeof(T) * rest);
  }
}

// sum + value * b
template <class T, class V>
V plus_product(V sum, T value, V b) {
  return sum + value * b;
}
template <class V, class B>
V plus_product(V sum, Pair, B) {  // of others than float: compiled, never called
  return sum;
}
#if defined(__AVX512BF16__)
inline Vector<float> plus_product(Vector<float> sum, Pair value, Vector<Pair> b) {
  return (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(value),
                                         (__m512bh)b);
}
#endif

// c (rows, COLS) = [c +] a (rows, depth) panel (depth, COLS), the rows of the panel `stride` apart;
// only `width` columns are written, and only as many vectors of them are computed. E is T or Pair.
template <class T, class E, int rows, int vectors>
void block(View<E> a, const E* __restrict panel, Index stride, Index depth, T* __restrict c,
           Index ldc, Index width, bool add) {
  using V = Vector<T>;
  constexpr int L = Lanes<T>::count;
  V sum[rows][vectors];
#pragma GCC unroll 12
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int h = 0; h < vectors; h++) sum[i][h] = V{};
#pragma GCC unroll 12
  for (int i = 0; i < rows; i++) {  // else the results would have to wait for their place in cache
    __builtin_prefetch(c + i * ldc, 1);
    __builtin_prefetch(c + i * ldc + vectors * L - 1, 1);
  }
  const E* __restrict at = a.data;
  for (Index k = 0; k < depth; k++, at += a.column, panel += stride) {
    Vector<E> b[vectors];
    for (int h = 0; h < vectors; h++) b[h] = *vector_at(panel + h * L);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
      const E value = at[i * a.row];
#pragma GCC unroll 2
      for (int h = 0; h < vectors; h++) sum[i][h] = plus_product(sum[i][h], value, b[h]);
    }
  }
  if (width == vectors * L) {
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
      for (int h = 0; h < vectors; h++) {
        V* out = vector_at(c + i * ldc + h * L);
        *out = add ? *out + sum[i][h] : sum[i][h];
      }
    return;
  }
#pragma GCC unroll 12
  for (int i = 0; i < rows; i++) {
    T row[vectors * L];  // a copy, so that the sums themselves can stay in registers
    for (int h = 0; h < vectors; h++) *vector_at(row + h * L) = sum[i][h];
    for (Index j = 0; j < width; j++) c[i * ldc + j] = add ? c[i * ldc + j] + row[j] : row[j];
  }
}

// The same for any number of rows.
template <class T, class E, int vectors>
void stripe_of(View<E> a, Index rows, const E* panel, Index stride, Index depth, T* c, Index ldc,
               Index width, bool add) {
  Index i = 0;
  auto take = [&](auto size) {
    constexpr int n = decltype(size)::value;
    for (; i + n <= rows; i += n)
      block<T, E, n, vectors>({a.at(i, 0), a.row, a.column}, panel, stride, depth, c + i * ldc,
                              ldc, width, add);
  };
  take(std::integral_constant<int, ROWS>());
  take(std::integral_constant<int, ROWS / 2>());
  take(std::integral_constant<int, ROWS / 6>());
  take(std::integral_constant<int, 1>());
}

template <class T, class E>
void stripe(View<E> a, Index rows, const E* panel, Index stride, Index depth, T* c, Index ldc,
            Index width, bool add) {
  if (width > Lanes<T>::count)
    stripe_of<T, E, 2>(a, rows, panel, stride, depth, c, ldc, width, add);
  else
    stripe_of<T, E, 1>(a, rows, panel, stride, depth, c, ldc, width, add);
}

// The same of `pairs`, which holds a, and a panel of pairs, or else of a. The caller holds
// `Tiles`.
template <class T>
void stripe(View<T> a, View<Pair> pairs, Index rows, const T* panel, Index stride, Index depth,
            T* c, Index ldc, Index width, bool add) {
  if (!pairs.data) return stripe(a, rows, panel, stride, depth, c, ldc, width, add);
  const Pair* packed = reinterpret_cast<const Pair*>(panel);
  const Index count = pair_count(depth);
  if (TILES)
    tile_stripe(pairs.data, pairs.row, count, packed, c, ldc, rows, width, add);
  else
    stripe(pairs, rows, packed, stride, count, c, ldc, width, add);
}

// c (rows, columns) = [c +] a (rows, depth) b (depth, columns), with b packed.
template <class T>
void product(View<T> a, Index rows, Index depth, const T* packed, Index columns, T* c, Index ldc,
             bool add) {
  const View<Pair> pairs = pairs_of(a, rows, depth);
  const Tiles tiles(pairs.row);
  for (Index p = 0; p < panels<T>(columns); p++)
    stripe(a, pairs, rows, packed + p * depth * COLS<T>, COLS<T>, depth, c + p * COLS<T>, ldc,
           std::min<Index>(COLS<T>, columns - p * COLS<T>), add);
}

// c (rows, columns) += a^T b, with a (count, rows) and b (count, columns); `room` is for b, packed.
template <class T>
void add_transposed_product(const T* a, Index rows, const T* b, Index columns, Index count, T* room,
                            T* c) {
  pack(View<T>{b, columns, 1}, count, columns, room);
  product(View<T>{a, 1, rows}, rows, count, room, columns, c, columns, true);
}

// sum (width) += the sum of `count` rows, `stride` apart. Few are added up at a time, so that
// rounding does not grow with their number.
template <class T>
void add_rows(const T* rows, Index count, Index stride, Index width, T* __restrict sum) {
  constexpr Index few = 32;
  T* __restrict part = scratch<T, 11>(width);
  for (Index first = 0; first < count; first += few) {
    std::fill(part, part + width, T(0));
    for (Index r = first; r < std::min(first + few, count); r++)
      for (Index f = 0; f < width; f++) part[f] += rows[r * stride + f];
    for (Index f = 0; f < width; f++) sum[f] += part[f];
  }
}

// Add the bias, (width), to each of `count` rows.
template <class T>
void add_bias(const T* bias, Index count, Index width, T* __restrict rows) {
  for (Index r = 0; r < count; r++)
    for (Index f = 0; f < width; f++) rows[r * width + f] += bias[f];
}

}  // namespace msde
