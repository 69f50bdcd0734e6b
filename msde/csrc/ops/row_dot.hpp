// Scalar products of the rows of two matrices.
#pragma once

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

  // A row of y may be met more than once: so each thread has columns of its own, and all rows.
  void backward(const T* g, T* gx, T* gy, int threads) const {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (Index n = 0; n < threads; n++) {
      const Index left = n * width / threads, right = (n + 1) * width / threads;
      for (Index s = 0; s < others; s++)
        std::fill(gy + s * width + left, gy + s * width + right, T(0));
      for (Index r = 0; r < rows; r++) {
        std::fill(gx + r * width + left, gx + r * width + right, T(0));
        for (Index k = 0; k < count; k++) {
          const Index s = at[r * count + k] * width;
          const T *from_x = x + r * width, *from_y = y + s, upper = g[r * count + k];
          T *__restrict to_x = gx + r * width, *__restrict to_y = gy + s;
          for (Index f = left; f < right; f++) {
            to_x[f] += upper * from_y[f];
            to_y[f] += upper * from_x[f];
          }
        }
      }
    }
  }
};

}  // namespace msde
