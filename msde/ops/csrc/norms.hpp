// BatchNorm in training, and the ReLU behind it.
#pragma once

#include "matmul.hpp"

namespace msde {

// y = [relu](x scale + shift) with x, (rows, width), normalised over the rows.
template <class T>
struct BatchNorm {
  const T *x, *weight, *bias;
  Index rows, width, relu_behind;
  T epsilon;

  // Mean and biased variance of each column. Parts of the rows are averaged first, and combined in
  // order (Chan et al. 1979): no square is taken of what has not been centred.
  void statistics(T* parts, Index part_count, T* mean, T* variance, int threads) const {
    share_parts(rows, part_count, threads, [&](Index part, Index first, Index last) {
      T *__restrict sum = parts + part * 2 * width, *__restrict squares = sum + width;
      std::fill(sum, sum + 2 * width, T(0));
      if (first == last) return;
      for (Index r = first; r < last; r++)
        for (Index f = 0; f < width; f++) sum[f] += x[r * width + f];
      const T fraction = T(1) / (last - first);
      for (Index f = 0; f < width; f++) sum[f] *= fraction;
      for (Index r = first; r < last; r++)
        for (Index f = 0; f < width; f++) {
          const T apart = x[r * width + f] - sum[f];
          squares[f] += apart * apart;
        }
    });
    std::fill(mean, mean + width, T(0));
    std::fill(variance, variance + width, T(0));
    for (Index part = 0; part < part_count; part++) {
      const Index before = part * rows / part_count, after = (part + 1) * rows / part_count;
      if (before == after) continue;
      const T fraction = T(after - before) / T(after), both = T(before) * fraction;
      const T *of_part = parts + part * 2 * width, *squares = of_part + width;
      for (Index f = 0; f < width; f++) {
        const T apart = of_part[f] - mean[f];
        mean[f] += apart * fraction;
        variance[f] += squares[f] + apart * apart * both;
      }
    }
    for (Index f = 0; f < width; f++) variance[f] /= T(rows);
  }

  // scale and shift of each column, one behind the other.
  T* affine(const T* mean, const T* variance) const {
    T* scale = scratch<T, 4>(2 * width);
    for (Index f = 0; f < width; f++) {
      scale[f] = weight[f] / std::sqrt(variance[f] + epsilon);
      scale[width + f] = bias[f] - mean[f] * scale[f];
    }
    return scale;
  }

  void forward(T* parts, Index part_count, T* mean, T* variance, T* y, int threads) const {
    statistics(parts, part_count, mean, variance, threads);
    const T *scale = affine(mean, variance), *shift = scale + width;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (Index r = 0; r < rows; r++) {
      const T* from = x + r * width;
      T* __restrict to = y + r * width;
      for (Index f = 0; f < width; f++) to[f] = from[f] * scale[f] + shift[f];
      if (relu_behind)
        for (Index f = 0; f < width; f++) to[f] = relu(to[f]);
    }
  }

  // With x' = (x - mean) / std and g masked by the ReLU:
  //   g_bias = sum g, g_weight = sum g x', gx = scale (g - g_bias / rows - x' g_weight / rows).
  // Each part of the rows has its own g_weight and g_bias, one behind the other, in `parts`.
  void backward(const T* g, const T* mean, const T* variance, T* gx, T* parts, Index part_count,
                T* g_weight, T* g_bias, int threads) const {
    const T* scale = affine(mean, variance);
    share_parts(rows, part_count, threads, [&](Index part, Index first, Index last) {
      T *__restrict of_weight = parts + part * 2 * width, *__restrict of_bias = of_weight + width;
      T* __restrict masked = scratch<T, 6>(width);
      std::fill(of_weight, of_weight + 2 * width, T(0));
      for (Index r = first; r < last; r++) {
        const T *gr = mask(g + r * width, x + r * width, scale, masked), *xr = x + r * width;
        for (Index f = 0; f < width; f++) {
          of_weight[f] += gr[f] * (xr[f] - mean[f]);
          of_bias[f] += gr[f];
        }
      }
    });
    add_parts(parts, part_count, 2 * width, width, g_weight, threads);
    add_parts(parts + width, part_count, 2 * width, width, g_bias, threads);
    T *slope = scratch<T, 5>(2 * width), *offset = slope + width;
    for (Index f = 0; f < width; f++) {
      const T inverse = T(1) / std::sqrt(variance[f] + epsilon);
      g_weight[f] *= inverse;
      slope[f] = -scale[f] * inverse * g_weight[f] / T(rows);
      offset[f] = -scale[f] * g_bias[f] / T(rows) - slope[f] * mean[f];
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (Index r = 0; r < rows; r++) {
      T* __restrict masked = scratch<T, 6>(width);
      const T *gr = mask(g + r * width, x + r * width, scale, masked), *xr = x + r * width;
      T* __restrict to = gx + r * width;
      for (Index f = 0; f < width; f++) to[f] = scale[f] * gr[f] + (slope[f] * xr[f] + offset[f]);
    }
  }

  // One row of g where the ReLU has let it through, in `masked`; without a ReLU g itself.
  const T* mask(const T* g, const T* x, const T* scale, T* __restrict masked) const {
    if (!relu_behind) return g;
    const T* shift = scale + width;
    for (Index f = 0; f < width; f++) masked[f] = relu_grad(g[f], x[f] * scale[f] + shift[f]);
    return masked;
  }
};

}  // namespace msde
