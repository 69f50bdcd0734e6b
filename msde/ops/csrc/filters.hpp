// Convolutions with filters that are interpolated in a table. The threads share the molecules: a
// row of a result is written by one thread, in one order.
#pragma once

#include "graphs.hpp"
#include "threads.hpp"

namespace msde {

// y_i = sum_j W_ij x_j with W_ij = sum_q weight_q table[first_row + q], for i and j both ways:
// `first_row`, (pairs,), is the first of four neighbouring rows, `weight` is (pairs, 4).
template <class T>
void interpolated_conv(const T* x, const T* table, const Index* first_row, const T* weight,
                       const Index* index, const Index* ptr, const Index* pair_ptr,
                       Index molecules, T* y, Index width, Index threads) {
  const Pairs pairs(index, ptr, pair_ptr, molecules);
  share(pairs.molecules, threads, [&](Index m) {
    std::fill(y + pairs.ptr[m] * width, y + pairs.ptr[m + 1] * width, T(0));
    for (Index p = pairs.pair_ptr[m]; p < pairs.pair_ptr[m + 1]; p++) {
      const T* w = weight + 4 * p;
      const T w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
      if (w0 == 0 && w1 == 0 && w2 == 0 && w3 == 0) continue;  // beyond the cutoff
      const T *t0 = table + first_row[p] * width, *t1 = t0 + width, *t2 = t1 + width,
              *t3 = t2 + width;
      const T *xi = x + pairs.i[p] * width, *xj = x + pairs.j[p] * width;
      T *__restrict yi = y + pairs.i[p] * width, *__restrict yj = y + pairs.j[p] * width;
#pragma GCC ivdep
      for (Index f = 0; f < width; f++) {
        const T filter = w0 * t0[f] + w1 * t1[f] + w2 * t2[f] + w3 * t3[f];
        yi[f] += filter * xj[f];
        yj[f] += filter * xi[f];
      }
    }
  });
}

// The gradient of the table: out[first_row + q] += weight_q (x_i g_j + x_j g_i).
// Pairs are taken in `order`, those of first_row = k from cell_ptr[k] to cell_ptr[k + 1]. Each such
// cell makes four rows of `parts`, (cells, 4, width), which are then added up row by row.
template <class T>
void interpolated_table_grad(const T* x, const T* g, const T* weight, const Index* index,
                             Index pairs, const Index* order, const Index* cell_ptr, T* parts, T* out,
                             Index cells, Index width, Index threads) {
  const Index *pair_i = index, *pair_j = index + pairs;
  share_each(cells, threads, [&](Index k) {
    if (cell_ptr[k] == cell_ptr[k + 1]) return;
    T* __restrict sum = parts + k * 4 * width;
    std::fill(sum, sum + 4 * width, T(0));
    for (Index s = cell_ptr[k]; s < cell_ptr[k + 1]; s++) {
      const Index p = order[s], i = pair_i[p] * width, j = pair_j[p] * width;
      const T *xi = x + i, *xj = x + j, *gi = g + i, *gj = g + j, *w = weight + 4 * p;
      const T w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
#pragma GCC ivdep
      for (Index f = 0; f < width; f++) {
        const T both = xi[f] * gj[f] + xj[f] * gi[f];
        sum[f] += w0 * both;
        sum[width + f] += w1 * both;
        sum[2 * width + f] += w2 * both;
        sum[3 * width + f] += w3 * both;
      }
    }
  });
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index row = 0; row < cells + 3; row++) {
    T* __restrict to = out + row * width;
    std::fill(to, to + width, T(0));
    for (Index q = std::max<Index>(0, row - cells + 1); q < std::min<Index>(4, row + 1); q++) {
      const Index k = row - q;
      if (cell_ptr[k] == cell_ptr[k + 1]) continue;
      const T* from = parts + (k * 4 + q) * width;
      for (Index f = 0; f < width; f++) to[f] += from[f];
    }
  }
}

}  // namespace msde

EXPORT(interpolated_conv)
EXPORT(interpolated_table_grad)
