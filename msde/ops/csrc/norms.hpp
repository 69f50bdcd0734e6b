// BatchNorm in training over rows, with the ReLU after it, and over edges.
#pragma once

#include "graphs.hpp"
#include "maths.hpp"
#include "threads.hpp"

namespace msde {

// y = [relu](x scale + shift) with x, (rows, width), normalised over the rows.
template <class T>
struct BatchNorm {
  const T *x, *weight, *bias;
  Index rows, width, relu_after;
  T epsilon;

  // Mean and biased variance of each column. Parts of the rows are averaged first, and combined in
  // order (Chan et al. 1979): only centred numbers are squared.
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

  // scale and shift of each column, one after the other.
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
      if (relu_after)
        for (Index f = 0; f < width; f++) to[f] = relu(to[f]);
    }
  }

  // With x' = (x - mean) / std and g masked by the ReLU:
  //   g_bias = sum g, g_weight = sum g x', gx = scale (g - g_bias / rows - x' g_weight / rows).
  // Each part of the rows has its own g_weight and g_bias, one after the other, in `parts`.
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

  // A row of the gradient before the ReLU, in `masked`; without a ReLU it is g itself.
  const T* mask(const T* g, const T* x, const T* scale, T* __restrict masked) const {
    if (!relu_after) return g;
    const T* shift = scale + width;
    for (Index f = 0; f < width; f++) masked[f] = relu_grad(g[f], x[f] * scale[f] + shift[f]);
    return masked;
  }
};

// BatchNorm of a_source + b_target over the edges. It is an affine map of each column, so it is
// applied at the atoms, and no row of an edge is ever written.
template <class T>
struct EdgeNorm {
  const T *a, *b, *weight;  // a and b are (atoms, width)
  const Index *row_ptr, *source;
  Index atoms, width;
  T epsilon;

  Index edges() const { return row_ptr[atoms]; }
  Index degree(Index i) const { return row_ptr[i + 1] - row_ptr[i]; }

  // Call work(i, sums) for each atom of a part, with `sums` (count * width), which begin at zero, and
  // add the parts up in order, to `out`.
  template <class Work>
  void sum_parts(T* parts, Index part_count, Index count, T* out, int threads, Work work) const {
    const Index size = count * width;
    share_parts(atoms, part_count, threads, [&](Index part, Index first, Index last) {
      T* mine = parts + part * size;
      std::fill(mine, mine + size, T(0));
      for (Index i = first; i < last; i++) work(i, mine);
    });
    add_parts(parts, part_count, size, size, out, threads);
  }

  // The sum of x_j - mean over the edges j -> i.
  void sum_neighbours(const T* x, const T* mean, Index i, T* __restrict to) const {
    std::fill(to, to + width, T(0));
    for (Index e = row_ptr[i]; e < row_ptr[i + 1]; e++) {
      const T* from = x + source[e] * width;
      for (Index f = 0; f < width; f++) to[f] += from[f] - mean[f];
    }
  }

  // `means`, (2, width), of a_source and of b_target, and the biased variance of their sum:
  // E[a'^2] + E[b'^2] + 2 E[a' b'] with both centred first.
  void statistics(T* parts, Index part_count, T* means, T* variance, int threads) const {
    sum_parts(parts, part_count, 2, means, threads, [&](Index i, T* __restrict sums) {
      const T fraction = T(degree(i)) / T(edges());
      for (Index f = 0; f < width; f++) {
        sums[f] += fraction * a[i * width + f];
        sums[width + f] += fraction * b[i * width + f];
      }
    });
    const T *mean_a = means, *mean_b = means + width;
    sum_parts(parts, part_count, 1, variance, threads, [&](Index i, T* __restrict sums) {
      T* __restrict near = scratch<T, 5>(width);
      sum_neighbours(a, mean_a, i, near);
      const T of_edges = T(degree(i));
      for (Index f = 0; f < width; f++) {
        const T of_a = a[i * width + f] - mean_a[f], of_b = b[i * width + f] - mean_b[f];
        sums[f] += of_edges * (of_a * of_a + of_b * of_b) + 2 * near[f] * of_b;
      }
    });
    // Rounding may leave a variance of zero a little below it.
    for (Index f = 0; f < width; f++) variance[f] = relu(variance[f] / T(edges()));
  }

  // normed_a = scale a, normed_b = scale b + bias - mean scale.
  void forward(const T* bias, T* parts, Index part_count, T* means, T* variance, T* normed_a,
               T* normed_b, int threads) const {
    statistics(parts, part_count, means, variance, threads);
    T *scale = scratch<T, 4>(2 * width), *shift = scale + width;
    for (Index f = 0; f < width; f++) {
      scale[f] = weight[f] / std::sqrt(variance[f] + epsilon);
      shift[f] = bias[f] - (means[f] + means[width + f]) * scale[f];
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (Index i = 0; i < atoms; i++)
      for (Index f = 0; f < width; f++) {
        normed_a[i * width + f] = a[i * width + f] * scale[f];
        normed_b[i * width + f] = b[i * width + f] * scale[f] + shift[f];
      }
  }

  // Gradients from ga and gb, those of normed_a and normed_b. With both centred,
  //   d variance / d a_i = 2 / edges (degree_i a_i + sum of b_j over the edges i -> j),
  // the other way round for b, and d mean / d a_i = d mean / d b_i = degree_i / edges.
  // `sums` is (2, width): that of gb, then the gradient of the scale.
  void backward(const T* ga, const T* gb, const T* means, const T* variance, T* parts,
                Index part_count, T* sums, T* to_a, T* to_b, T* g_weight, T* g_bias,
                int threads) const {
    const T *mean_a = means, *mean_b = means + width;
    sum_parts(parts, part_count, 2, sums, threads, [&](Index i, T* __restrict mine) {
      const Index at = i * width;
      for (Index f = 0; f < width; f++) {
        mine[f] += gb[at + f];
        mine[width + f] += ga[at + f] * a[at + f] + gb[at + f] * (b[at + f] - mean_a[f] - mean_b[f]);
      }
    });
    T *scale = scratch<T, 4>(3 * width), *of_mean = scale + width, *of_variance = of_mean + width;
    for (Index f = 0; f < width; f++) {
      const T inverse = T(1) / std::sqrt(variance[f] + epsilon);
      scale[f] = weight[f] * inverse;
      g_bias[f] = sums[f];
      g_weight[f] = sums[width + f] * inverse;
      of_mean[f] = -scale[f] * sums[f] / T(edges());
      of_variance[f] = -sums[width + f] * scale[f] * inverse * inverse / T(edges());
    }
    share_each(atoms, threads, [&](Index i) {
      T *__restrict near_a = scratch<T, 5>(2 * width), *__restrict near_b = near_a + width;
      sum_neighbours(a, mean_a, i, near_a);
      sum_neighbours(b, mean_b, i, near_b);
      const T of_edges = T(degree(i));
      for (Index f = 0; f < width; f++) {
        const Index at = i * width + f;
        const T of_a = of_edges * (a[at] - mean_a[f]), of_b = of_edges * (b[at] - mean_b[f]);
        const T both = of_edges * of_mean[f];
        to_a[at] = ga[at] * scale[f] + of_variance[f] * (of_a + near_b[f]) + both;
        to_b[at] = gb[at] * scale[f] + of_variance[f] * (of_b + near_a[f]) + both;
      }
    });
  }
};

template <class T>
void batch_norm(const T* x, const T* weight, const T* bias, Index rows, Index width, Index relu,
                double epsilon, T* parts, Index part_count, T* mean, T* variance, T* y,
                Index threads) {
  BatchNorm<T>{x, weight, bias, rows, width, relu, T(epsilon)}.forward(parts, part_count, mean,
                                                                       variance, y, threads);
}

template <class T>
void batch_norm_grad(const T* g, const T* x, const T* weight, const T* bias, Index rows,
                     Index width, Index relu, double epsilon, const T* mean, const T* variance,
                     T* gx, T* parts, Index part_count, T* g_weight, T* g_bias, Index threads) {
  BatchNorm<T>{x, weight, bias, rows, width, relu, T(epsilon)}.backward(
      g, mean, variance, gx, parts, part_count, g_weight, g_bias, threads);
}

template <class T>
void edge_norm(const T* a, const T* b, const T* weight, const T* bias, const Index* row_ptr,
               const Index* source, Index atoms, Index width, double epsilon, T* parts,
               Index part_count, T* means, T* variance, T* normed_a, T* normed_b, Index threads) {
  EdgeNorm<T>{a, b, weight, row_ptr, source, atoms, width, T(epsilon)}.forward(
      bias, parts, part_count, means, variance, normed_a, normed_b, threads);
}

template <class T>
void edge_norm_grad(const T* ga, const T* gb, const T* a, const T* b, const T* weight,
                    const Index* row_ptr, const Index* source, Index atoms, Index width,
                    double epsilon, const T* means, const T* variance, T* parts, Index part_count,
                    T* sums, T* to_a, T* to_b, T* g_weight, T* g_bias, Index threads) {
  EdgeNorm<T>{a, b, weight, row_ptr, source, atoms, width, T(epsilon)}.backward(
      ga, gb, means, variance, parts, part_count, sums, to_a, to_b, g_weight, g_bias, threads);
}

}  // namespace msde

EXPORT(batch_norm)
EXPORT(batch_norm_grad)
EXPORT(edge_norm)
EXPORT(edge_norm_grad)
