// BatchNorm of a_source + b_target over the edges. It is an affine map of each column, so it is made
// at the atoms, and no row of an edge is ever written.
#pragma once

#include "edges.hpp"

namespace msde {

template <class T>
struct EdgeNorm {
  const T *a, *b, *weight;  // a and b are (atoms, width)
  Rows rows;
  Index width;
  T epsilon;

  Index edges() const { return rows.row_ptr[rows.atoms]; }
  Index degree(Index i) const { return rows.row_ptr[i + 1] - rows.row_ptr[i]; }

  // For each part of the atoms, by any of the threads: work(i, sums) for each of its atoms, with
  // `sums` (count * width), which begin at zero. Then the parts are added up in order, to `out`.
  template <class Work>
  void sum_parts(T* parts, Index part_count, Index count, T* out, int threads, Work work) const {
    const Index size = count * width;
    share_parts(rows.atoms, part_count, threads, [&](Index part, Index first, Index last) {
      T* mine = parts + part * size;
      std::fill(mine, mine + size, T(0));
      for (Index i = first; i < last; i++) work(i, mine);
    });
    add_parts(parts, part_count, size, size, out, threads);
  }

  // The sum of x_j - mean over the edges j -> i.
  void sum_neighbours(const T* x, const T* mean, Index i, T* __restrict to) const {
    std::fill(to, to + width, T(0));
    for (Index e = rows.row_ptr[i]; e < rows.row_ptr[i + 1]; e++) {
      const T* from = x + rows.source[e] * width;
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
    for (Index i = 0; i < rows.atoms; i++)
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
    share_each(rows.atoms, threads, [&](Index i) {
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

}  // namespace msde
