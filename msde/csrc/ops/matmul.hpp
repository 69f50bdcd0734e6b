// The product of two matrices by all threads.
#pragma once

#include "maths.hpp"

namespace msde {

// out = parts_0 + parts_1 + ..., `count` of them, each of `size`, one `stride` behind the other.
template <class T>
void add_parts(const T* parts, Index count, Index stride, Index size, T* out, int threads) {
  constexpr Index slice = 512;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index s = 0; s < (size + slice - 1) / slice; s++) {
    const Index first = s * slice, last = std::min(size, first + slice);
    std::copy(parts + first, parts + last, out + first);
    for (Index part = 1; part < count; part++)
      for (Index f = first; f < last; f++) out[f] += parts[part * stride + f];
  }
}

// sum (width) += the sum of `count` rows, `stride` apart. Few are added up at a time, so that rounding
// does not grow with their number.
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

// c (rows, columns) = activation([c +] a (rows, depth) b (depth, columns) [+ bias] [+ plus]), c row
// after row. `before`, where it is given, gets what the activation is applied to.
template <class T>
struct Matmul {
  View<T> a, b;
  T* c;
  Index rows, depth, columns;
  bool add = false;
  const T* bias = nullptr;
  Activation activation = NONE;
  T* before = nullptr;
  const T* plus = nullptr;

  static constexpr Index AHEAD = 3;  // stripes, which rows are fetched before they are needed

  Index panel_count() const { return panels<T>(columns); }
  Index width(Index panel) const { return std::min<Index>(COLS<T>, columns - panel * COLS<T>); }

  // Copying a panel pays where many rows use it, and must be where its numbers are not in a row.
  bool direct(Index panel) const {
    return rows <= 4 * ROWS && b.column == 1 && width(panel) == COLS<T>;
  }

  // Have part `p` of a stripe of rows of a brought to the cache before it is needed.
  void fetch(Index first, Index count, Index p, Index k, Index deep) const {
    const Index from = first + p * count / panel_count();
    const Index until = std::min(rows, first + (p + 1) * count / panel_count());
    for (Index r = from; r < until; r++)
      for (Index j = 0; j < deep; j += LINE<T>) __builtin_prefetch(a.at(r, k + j), 0, 2);
  }

  // Multiply the rows first ... first + count by all panels, k by k in steps of DEPTH at most.
  void multiply(Index first, Index count, const T* packed, Index step) const {
    T* to = c + first * columns;
    if (plus) std::copy(plus + first * columns, plus + (first + count) * columns, to);
    for (Index k = 0; k < depth; k += step) {
      const Index deep = std::min(step, depth - k);
      const View<T> part{a.at(first, k), a.row, a.column};
      for (Index p = 0; p < panel_count(); p++) {
        fetch(first + AHEAD * count, count, p, k, deep);
        const T* panel = direct(p) ? b.at(k, p * COLS<T>) : packed + (p * depth + k) * COLS<T>;
        stripe(part, count, panel, direct(p) ? b.row : COLS<T>, deep, to + p * COLS<T>, columns,
               width(p), add || plus || k > 0);
      }
    }
    if (bias) add_bias(bias, count, columns, to);
    if (before) std::copy(to, to + count * columns, before + first * columns);
    activate(activation, to, count * columns);
  }

  // `prepare(first, count)` is called for rows of a before they are used, by who uses them.
  template <class Prepare>
  void run(int threads, Prepare prepare) const {
    if (depth == 0 && !add && !plus) std::fill(c, c + rows * columns, T(0));
    T* packed = scratch<T, 0>(panel_count() * depth * COLS<T>);
    const Index stages = (depth + DEPTH - 1) / DEPTH;
    const Index step = stages ? (depth + stages - 1) / stages : 1;
    // Stripes of rows, short enough that the threads finish together.
    const Index share = (rows + ROWS * threads - 1) / (ROWS * threads);
    const Index tall = ROWS * std::clamp<Index>(share / 8, 1, 8);
    const Index stripes = (rows + tall - 1) / tall;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for collapse(2) schedule(dynamic, 4)
      for (Index p = 0; p < panel_count(); p++)
        for (Index s = 0; s < stages; s++) {
          const Index k = s * step, deep = std::min(step, depth - k);
          if (!direct(p))
            pack_panel(View<T>{b.at(k, 0), b.row, b.column}, deep, columns, p * COLS<T>,
                       packed + (p * depth + k) * COLS<T>);
        }
#pragma omp for schedule(dynamic)
      for (Index s = 0; s < stripes; s++) {
        const Index first = s * tall, count = std::min(tall, rows - first);
        prepare(first, count);
        multiply(first, count, packed, step);
      }
    }
  }

  void run(int threads) const {
    run(threads, [](Index, Index) {});
  }
};

// c (rows, columns) = a^T b and sums (rows) = a^T 1, with a (count, rows) and b (count, columns):
// gradients of weights, few, from many rows.
template <class T>
struct TransposedMatmul {
  const T *a, *b;
  T *c, *sums;
  Index count, rows, columns;
  // Rows at once. Panels as long as a power of two would fall on the same places of a cache.
  static constexpr Index STEP = 252;

  // The piece of c from row `top` to `bottom`, column `left` to `right`, by one thread. It packs
  // what it needs: so no thread waits for another.
  void piece(Index top, Index bottom, Index left, Index right) const {
    const Index tall = bottom - top, wide = right - left;
    T* blocks = scratch<T, 0>(STEP * tall);
    T* packed = scratch<T, 8>(STEP * panels<T>(wide) * COLS<T>);
    if (left == 0) std::fill(sums + top, sums + bottom, T(0));
    for (Index k = 0; k < count; k += STEP) {
      const Index deep = std::min(STEP, count - k);
      const T* of_a = a + k * rows + top;
      pack_transposed(of_a, rows, deep, tall, blocks);
      pack(View<T>{b + k * columns + left, columns, 1}, deep, wide, packed);
      if (left == 0) add_rows(of_a, deep, rows, tall, sums + top);
      for (Index j = 0; j < wide; j += COLS<T>)
        for (Index i = 0; i < tall; i += ROWS) {
          const Index high = std::min<Index>(ROWS, tall - i);
          stripe(View<T>{blocks + i * deep, 1, high}, high, packed + j * deep, COLS<T>, deep,
                 c + (top + i) * columns + left + j, columns, std::min<Index>(COLS<T>, wide - j),
                 k > 0);
        }
    }
  }

  void run(int threads) const {
    if (count == 0) std::fill(c, c + rows * columns, T(0));
    // A piece for each thread, cut into `across` by `down` so that least is packed twice.
    auto packed_twice = [&](Index across) { return rows * across + columns * (threads / across); };
    Index across = 1;
    for (Index n = 2; n <= threads; n++)
      if (threads % n == 0 && packed_twice(n) < packed_twice(across)) across = n;
    const Index down = threads / across;
    auto row = [&](Index i) { return std::min(rows, (rows + ROWS - 1) / ROWS * i / down * ROWS); };
    auto column = [&](Index j) {
      return std::min(columns, panels<T>(columns) * j / across * COLS<T>);
    };
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (Index n = 0; n < threads; n++)
      piece(row(n / across), row(n / across + 1), column(n % across), column(n % across + 1));
  }
};

}  // namespace msde
