// Scalar products of the rows of two matrices.
#pragma once

#include "graphs.hpp"
#include "pairs.hpp"

namespace msde {

// out_rk = <x_r, y_s> with s = at[r, k].
template <class T>
struct RowDot {
  const T *x, *y;   // (rows, width) and (others, width)
  const Index* at;  // (rows, count)
  Index rows, others, width, count;

  void forward(T* out, int threads) const {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (Index r = 0; r < rows; r++)
      for (Index k = 0; k < count; k++)
        out[r * count + k] = dot(x + r * width, y + at[r * count + k] * width, width);
  }

  // A row of y may be met more than once: its gradient is summed over where it is met, in order.
  void backward(const T* g, T* gx, T* gy, int threads) const {
    Index *ptr = scratch<Index, 12>(others + 1 + rows * count), *met = ptr + others + 1;
    group(at, rows * count, others, ptr, met);
    share_each(rows, threads, [&](Index r) {
      T* to = gx + r * width;
      std::fill(to, to + width, T(0));
      for (Index k = r * count; k < (r + 1) * count; k++) add_multiple(g[k], y + at[k] * width, to);
    });
    share_each(others, threads, [&](Index s) {
      T* to = gy + s * width;
      std::fill(to, to + width, T(0));
      for (Index n = ptr[s]; n < ptr[s + 1]; n++)
        add_multiple(g[met[n]], x + met[n] / count * width, to);
    });
  }

  void add_multiple(T factor, const T* from, T* __restrict to) const {
    for (Index f = 0; f < width; f++) to[f] += factor * from[f];
  }
};

}  // namespace msde
