// The product of two matrices by all threads.
#pragma once

#include "gemm.hpp"
#include "maths.hpp"
#include "threads.hpp"

namespace msde {

// Have rows, `stride` apart, brought to the cache before they are needed.
template <class T>
void fetch(const T* rows, Index count, Index stride, Index width) {
  for (Index r = 0; r < count; r++)
    for (Index f = 0; f < width; f += LINE<T>) __builtin_prefetch(rows + r * stride + f, 0, 2);
}

// c (rows, columns) = activation([c +] a (rows, depth) b (depth, columns) [+ bias] [+ plus]), c row
// after row. `before`, where it is given, gets the activation's input.
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

  Index panel_count() const { return panels<T>(columns); }
  Index width(Index panel) const { return std::min<Index>(COLS<T>, columns - panel * COLS<T>); }

  // Copying a panel pays where many rows use it, and must be where its numbers are not in a row.
  bool direct(Index panel) const {
    return rows <= 4 * ROWS && b.column == 1 && width(panel) == COLS<T> && !in_pairs<T>();
  }

  // Have part `p` of the stripe of rows from `first` on brought to the cache.
  void fetch_part(Index first, Index count, Index p, Index k, Index deep) const {
    const Index from = std::min(rows, first + p * count / panel_count());
    const Index until = std::min(rows, first + (p + 1) * count / panel_count());
    fetch(a.at(from, k), until - from, a.row, deep);
  }

  // Multiply the rows first ... first + count by all panels, k by k in steps of DEPTH at most.
  void multiply(Index first, Index count, const T* packed, Index step) const {
    T* to = c + first * columns;
    if (plus) std::copy(plus + first * columns, plus + (first + count) * columns, to);
    for (Index k = 0; k < depth; k += step) {
      const Index deep = std::min(step, depth - k);
      const View<T> part{a.at(first, k), a.row, a.column};
      const View<Pair> pairs = pairs_of(part, count, deep);
      const Tiles tiles(pairs.row);
      for (Index p = 0; p < panel_count(); p++) {
        fetch_part(first + count, count, p, k, deep);
        const T* panel = direct(p) ? b.at(k, p * COLS<T>) : packed + (p * depth + k) * COLS<T>;
        stripe(part, pairs, count, panel, direct(p) ? b.row : COLS<T>, deep, to + p * COLS<T>,
               columns, width(p), add || plus || k > 0);
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
    const Index high = block_rows<T>();
    const Index blocks_each = (rows + high * threads - 1) / (high * threads);
    const Index tall = high * std::clamp<Index>(blocks_each / 8, 1, 8);
    share(panel_count() * stages, threads, [&](Index n) {
      const Index p = n / stages, k = n % stages * step, deep = std::min(step, depth - k);
      if (!direct(p))
        pack_panel(View<T>{b.at(k, 0), b.row, b.column}, deep, columns, p * COLS<T>,
                   packed + (p * depth + k) * COLS<T>);
    });
    share_rows(rows, tall, threads, [&](Index first, Index count) {
      prepare(first, count);
      multiply(first, count, packed, step);
    });
  }

  void run(int threads) const {
    run(threads, [](Index, Index) {});
  }
};

// c (rows, columns) = a^T b and sums (rows) = a^T 1, with a (count, rows) and b (count, columns):
// gradients of weights, few, from many rows. Each part of the rows makes a c and sums of its own in
// `parts`, (part_count, both), whatever the number of threads.
template <class T>
struct TransposedMatmul {
  const T *a, *b;
  Index count, rows, columns;
  T* parts;
  Index part_count;
  // Rows at once. Panels as long as a power of two would fall on the same places of a cache.
  static constexpr Index STEP = 252;

  // The columns left ... right of one part, from the rows first ... last.
  void piece(Index first, Index last, Index left, Index right, T* c) const {
    const Index wide = right - left;
    const Index high = block_rows<T>();
    const Index products = panels<T>(wide) * ((rows + high - 1) / high);
    T* blocks = scratch<T, 0>(STEP * rows);
    T* packed = scratch<T, 8>(STEP * panels<T>(wide) * COLS<T>);
    T* sums = left == 0 ? c + rows * columns : nullptr;
    if (sums) std::fill(sums, sums + rows, T(0));
    for (Index k = first; k < last; k += STEP) {
      const Index deep = std::min(STEP, last - k), next = k + deep;
      const Index ahead = std::min(STEP, last - next);
      const View<Pair> pairs = pairs_of(View<T>{a + k * rows, 1, rows}, rows, deep);
      const Tiles tiles(pairs.row);
      if (!pairs.data) pack_transposed(a + k * rows, rows, deep, rows, blocks);
      pack(View<T>{b + k * columns + left, columns, 1}, deep, wide, packed);
      if (sums) add_rows(a + k * rows, deep, rows, rows, sums);
      Index done = 0;
      for (Index j = 0; j < wide; j += COLS<T>)
        for (Index i = 0; i < rows; i += high, done++) {
          const Index from = next + ahead * done / products;
          const Index number = next + ahead * (done + 1) / products - from;
          fetch(a + from * rows, number, rows, rows);
          fetch(b + from * columns + left, number, columns, wide);
          const Index some = std::min(high, rows - i);
          stripe(View<T>{blocks + i * deep, 1, some}, pairs.from(i), some, packed + j * deep,
                 COLS<T>, deep, c + i * columns + left + j, columns,
                 std::min<Index>(COLS<T>, wide - j), k > first);
        }
    }
  }

  void run(T* c, T* sums, int threads) const {
    const Index size = rows * columns, both = size + rows;
    if (count < part_count)  // a part without rows writes nothing
      std::fill(parts, parts + part_count * both, T(0));
    // Two pieces a thread, where there are panels enough; each packs all columns of a for itself.
    const Index wanted = threads > 1 ? (2 * threads + part_count - 1) / part_count : 1;
    const Index across = std::min(panels<T>(columns), wanted);
    auto column = [&](Index n) {
      return std::min(columns, panels<T>(columns) * n / across * COLS<T>);
    };
    share(part_count * across, threads, [&](Index n) {
      const Index part = n / across;
      piece(part * count / part_count, (part + 1) * count / part_count, column(n % across),
            column(n % across + 1), parts + part * both);
    });
    add_parts(parts, part_count, both, size, c, threads);
    add_parts(parts + size, part_count, both, rows, sums, threads);
  }
};

}  // namespace msde
