// The frames of edges: positions in them, and sums along them.
#pragma once

#include <cmath>

#include "base.hpp"

namespace msde {

// Without fused products, which would make a x b differ from -(b x a).
template <class T>
__attribute__((noinline, optimize("fp-contract=off"))) void cross_product(const T* a, const T* b,
                                                                          T* out) {
#ifdef __clang__  // which does not know the attribute
#pragma clang fp contract(off)
#endif
  out[0] = a[1] * b[2] - a[2] * b[1];
  out[1] = a[2] * b[0] - a[0] * b[2];
  out[2] = a[0] * b[1] - a[1] * b[0];
}

template <class T>
T inner(const T* a, const T* b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

// Frames, coordinates, angles and lengths of edges: see `msde.ops.edge_geometry`.
template <class T>
struct EdgeGeometry {
  const T* pos;  // (atoms, 3)
  const Index *source, *target;
  T collinear, epsilon;
  T *frames, *of_source, *of_target, *angle, *distance;

  void run(Index edges, Index threads) const {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (Index e = 0; e < edges; e++) one(e);
  }

  void one(Index e) const {
    const T *a = pos + 3 * source[e], *b = pos + 3 * target[e];
    T *e1 = frames + 9 * e, *e2 = e1 + 3, *e3 = e2 + 3;
    for (int d = 0; d < 3; d++) e1[d] = a[d] - b[d];
    distance[e] = std::sqrt(inner(e1, e1));
    for (int d = 0; d < 3; d++) e1[d] /= distance[e] + epsilon;
    cross_product(a, b, e2);
    const T fade = collinear * std::sqrt(inner(a, a)) * std::sqrt(inner(b, b));
    const T length = std::sqrt(inner(e2, e2)) + fade + epsilon;
    for (int d = 0; d < 3; d++) e2[d] /= length;
    cross_product(e1, e2, e3);
    const T source_in[3] = {inner(e1, a), std::fabs(inner(e2, a)), inner(e3, a)};
    const T target_in[3] = {inner(e1, b), std::fabs(inner(e2, b)), inner(e3, b)};
    for (int d = 0; d < 2; d++) {
      of_source[2 * e + d] = source_in[2 * d];
      of_target[2 * e + d] = target_in[2 * d];
    }
    const T norms = (std::sqrt(inner(source_in, source_in)) + epsilon) *
                    (std::sqrt(inner(target_in, target_in)) + epsilon);
    const T cosine = inner(source_in, target_in) / norms;
    const T square = 1 - cosine * cosine, least = epsilon * epsilon;
    angle[2 * e] = std::sqrt(square < least ? least : square);  // NaN stays NaN
    angle[2 * e + 1] = cosine;
  }
};

template <class T>
void edge_geometry(const T* pos, const Index* index, Index edges, double collinear, double epsilon,
                   T* frames, T* of_source, T* of_target, T* angle, T* distance, Index threads) {
  EdgeGeometry<T>{pos, index, index + edges, T(collinear), T(epsilon), frames, of_source, of_target,
                  angle, distance}
      .run(edges, threads);
}

// y_i (3) = the mean over the edges into atom i of sum_k b_ek frame_ek.
template <class T>
void frame_mean(const T* b, const T* frames, const Index* row_ptr, Index atoms, T* y,
                Index threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index i = 0; i < atoms; i++) {
    T sum[3] = {0, 0, 0};
    for (Index e = row_ptr[i]; e < row_ptr[i + 1]; e++)
      for (int k = 0; k < 3; k++)
        for (int d = 0; d < 3; d++) sum[d] += b[3 * e + k] * frames[9 * e + 3 * k + d];
    const T count = T(std::max<Index>(1, row_ptr[i + 1] - row_ptr[i]));
    for (int d = 0; d < 3; d++) y[3 * i + d] = sum[d] / count;
  }
}

// The gradient of b from g, (atoms, 3).
template <class T>
void frame_mean_grad(const T* g, const T* frames, const Index* row_ptr, Index atoms, T* gb,
                     Index threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index i = 0; i < atoms; i++) {
    const T count = T(std::max<Index>(1, row_ptr[i + 1] - row_ptr[i]));
    for (Index e = row_ptr[i]; e < row_ptr[i + 1]; e++)
      for (int k = 0; k < 3; k++)
        gb[3 * e + k] = inner(g + 3 * i, frames + 9 * e + 3 * k) / count;
  }
}

}  // namespace msde

EXPORT(edge_geometry)
EXPORT(frame_mean)
EXPORT(frame_mean_grad)
