// The product of two matrices by all threads.
#pragma once

#include "gemm.hpp"

namespace msde {

// c (rows, columns) = a (rows, depth) b (depth, columns) [+ bias], c row after row.
template <class T>
struct Matmul {
  View<T> a, b;
  const T* bias;
  T* c;
  Index rows, depth, columns;

  Index panel_count() const { return panels<T>(columns); }
  Index width(Index panel) const { return std::min<Index>(COLS<T>, columns - panel * COLS<T>); }

  // Copying a panel pays where many rows use it, and must be where its numbers are not in a row.
  bool direct(Index panel) const {
    return rows <= 4 * ROWS && b.column == 1 && width(panel) == COLS<T>;
  }

  // Multiply the rows first ... first + count by one panel, k by k in `stages` of DEPTH at most.
  void multiply(Index first, Index count, Index panel, const T* packed, Index step) const {
    T* to = c + first * columns + panel * COLS<T>;
    for (Index k = 0; k < depth; k += step) {
      const Index deep = std::min(step, depth - k);
      const View<T> part{a.at(first, k), a.row, a.column};
      if (direct(panel))
        stripe(part, count, b.at(k, panel * COLS<T>), b.row, deep, to, columns, COLS<T>, k > 0);
      else
        stripe(part, count, packed + (panel * depth + k) * COLS<T>, COLS<T>, deep, to, columns,
               width(panel), k > 0);
    }
    if (bias)
      for (Index i = 0; i < count; i++)
        for (Index j = 0; j < width(panel); j++) to[i * columns + j] += bias[panel * COLS<T> + j];
  }

  void run(int threads) const {
    if (depth == 0) std::fill(c, c + rows * columns, T(0));
    T* packed = scratch<T, 0>(panel_count() * depth * COLS<T>);
    const Index stages = (depth + DEPTH - 1) / DEPTH;
    const Index step = stages ? (depth + stages - 1) / stages : 1;
    // Stripes of rows, short enough that the threads finish together.
    const Index tall = ROWS * std::clamp<Index>(rows / (ROWS * 4 * threads), 1, 20);
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
#pragma omp for collapse(2) schedule(dynamic, 4)
      for (Index s = 0; s < stripes; s++)
        for (Index p = 0; p < panel_count(); p++)
          multiply(s * tall, std::min(tall, rows - s * tall), p, packed, step);
    }
  }
};

}  // namespace msde
