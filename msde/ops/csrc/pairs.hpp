// Sums over the unordered pairs of atoms of molecules. The threads share the molecules: a row of a
// result is written by one thread, in one order.
#pragma once

#include "graphs.hpp"
#include "maths.hpp"
#include "threads.hpp"

namespace msde {

// y_ci = sum_j weight_pc x_cj for both ways of each pair p = (i, j); weight (pairs, channels),
// x and y (channels, atoms, width).
template <class T>
void pair_sum(const T* weight, const T* x, const Index* index, const Index* ptr,
              const Index* pair_ptr, Index molecules, T* y, Index channels, Index width,
              Index threads) {
  const Pairs pairs(index, ptr, pair_ptr, molecules);
  const Index atoms = pairs.ptr[pairs.molecules];
  share(pairs.molecules, threads, [&](Index m) {
    for (Index c = 0; c < channels; c++) {
      const T* from = x + c * atoms * width;
      T* to = y + c * atoms * width;
      std::fill(to + pairs.ptr[m] * width, to + pairs.ptr[m + 1] * width, T(0));
      for (Index p = pairs.pair_ptr[m]; p < pairs.pair_ptr[m + 1]; p++) {
        const Index i = pairs.i[p] * width, j = pairs.j[p] * width;
        const T w = weight[p * channels + c];
        T *__restrict yi = to + i, *__restrict yj = to + j;
#pragma GCC ivdep
        for (Index f = 0; f < width; f++) {
          yi[f] += w * from[j + f];
          yj[f] += w * from[i + f];
        }
      }
    }
  });
}

// The gradient of the weights of pair_sum: out_pc = <x_ci, g_cj> + <x_cj, g_ci>.
template <class T>
void pair_dot(const T* x, const T* g, const Index* index, const Index* ptr, const Index* pair_ptr,
              Index molecules, T* out, Index channels, Index width, Index threads) {
  const Pairs pairs(index, ptr, pair_ptr, molecules);
  const Index atoms = pairs.ptr[pairs.molecules];
  share(pairs.molecules, threads, [&](Index m) {
    for (Index c = 0; c < channels; c++) {
      const T *a = x + c * atoms * width, *b = g + c * atoms * width;
      for (Index p = pairs.pair_ptr[m]; p < pairs.pair_ptr[m + 1]; p++) {
        const Index i = pairs.i[p] * width, j = pairs.j[p] * width;
        out[p * channels + c] = dot(a + i, b + j, width) + dot(a + j, b + i, width);
      }
    }
  });
}

// One channel of one molecule in pair_attention: its queries and keys with the atoms side by side.
template <class T>
struct Logits {
  static constexpr int L = Lanes<T>::count;
  Index atoms, padded, width, chunk;
  T *keys, *row;   // (width, padded), (padded)
  const T* query;  // (atoms, width)
  T scale;

  Logits(Index atoms, Index width, Index chunk)
      : atoms(atoms), padded((atoms + L - 1) / L * L), width(width), chunk(chunk) {
    keys = scratch<T, 1>((width + 1) * padded);
    row = keys + width * padded;
    scale = T(1) / std::sqrt(T(chunk));
  }

  void load(const T* q, const T* k) {
    query = q;
    for (Index d = 0; d < width; d++) {
      T* to = keys + d * padded;
      for (Index a = 0; a < atoms; a++) to[a] = k[a * width + d];
      std::fill(to + atoms, to + padded, T(0));
    }
  }

  // tanh of the logits of atom i with all atoms in one head, into `row`.
  void tanh_row(Index i, Index head) {
    const T* q = query + i * width + head * chunk;
    const T* k = keys + head * chunk * padded;
    if (chunk == 4) return tanh_row_of<4>(q, k);
    if (chunk == 8) return tanh_row_of<8>(q, k);
    for (Index a = 0; a < padded; a++) row[a] = q[0] * k[a];
    for (Index d = 1; d < chunk; d++)
      for (Index a = 0; a < padded; a++) row[a] += q[d] * k[d * padded + a];
    for (Index a = 0; a < padded; a++) row[a] = hyperbolic_tangent(row[a] * scale);
  }

  // The same where the compiler knows the few numbers of a head: nothing goes to memory and back.
  template <int few>
  void tanh_row_of(const T* q, const T* k) {
#pragma GCC ivdep
    for (Index a = 0; a < padded; a++) {
      T logit = q[0] * k[a];
#pragma GCC unroll 8
      for (int d = 1; d < few; d++) logit += q[d] * k[d * padded + a];
      row[a] = hyperbolic_tangent(logit * scale);
    }
  }
};

// out_pc = 1 / (2 heads) sum over heads of
//   tanh(q_i.k_j / sqrt(chunk)) + tanh(q_j.k_i / sqrt(chunk))
// for p = (i, j); q and k are (channels, atoms, heads * chunk), out is (pairs, channels).
template <class T>
void pair_attention(const T* q, const T* k, const Index* index, const Index* ptr,
                    const Index* pair_ptr, Index molecules, T* out, Index channels, Index width,
                    Index chunk, Index threads) {
  const Pairs pairs(index, ptr, pair_ptr, molecules);
  const Index total = pairs.ptr[pairs.molecules], heads = width / chunk;
  share(pairs.molecules, threads, [&](Index m) {
    const Index first = pairs.ptr[m], n = pairs.ptr[m + 1] - first;
    Logits<T> logits(n, width, chunk);
    const Index padded = logits.padded;
    T* sums = scratch<T, 2>(n * padded);  // over the heads
    for (Index c = 0; c < channels; c++) {
      const Index at = (c * total + first) * width;
      logits.load(q + at, k + at);
      for (Index i = 0; i < n; i++) {
        T* __restrict sum = sums + i * padded;
        std::fill(sum, sum + padded, T(0));
        for (Index h = 0; h < heads; h++) {
          logits.tanh_row(i, h);
          for (Index a = 0; a < padded; a++) sum[a] += logits.row[a];
        }
      }
      for (Index p = pairs.pair_ptr[m]; p < pairs.pair_ptr[m + 1]; p++) {
        const Index i = pairs.i[p] - first, j = pairs.j[p] - first;
        out[p * channels + c] = (sums[i * padded + j] + sums[j * padded + i]) / T(2 * heads);
      }
    }
  });
}

// Gradients of pair_attention with the tanh recomputed: d tanh(s) = (1 - tanh(s)^2) ds.
template <class T>
void pair_attention_grad(const T* g, const T* q, const T* k, const Index* index, const Index* ptr,
                         const Index* pair_ptr, Index molecules, T* gq, T* gk, Index channels,
                         Index width, Index chunk, Index threads) {
  const Pairs pairs(index, ptr, pair_ptr, molecules);
  const Index total = pairs.ptr[pairs.molecules], heads = width / chunk;
  share(pairs.molecules, threads, [&](Index m) {
    const Index first = pairs.ptr[m], n = pairs.ptr[m + 1] - first;
    Logits<T> logits(n, width, chunk);
    const Index padded = logits.padded;
    // Of each logit's tanh, and of the logits of a head, of query and key and the other way round.
    T* upper = scratch<T, 2>((3 * padded + 2 * width) * padded);
    T *slopes = upper + padded * padded, *turned = slopes + padded * padded;
    T *query_grad = turned + padded * padded, *key_grad = query_grad + width * padded;
    std::fill(upper, upper + 3 * padded * padded, T(0));
    for (Index c = 0; c < channels; c++) {
      const Index at = (c * total + first) * width;
      logits.load(q + at, k + at);
      for (Index p = pairs.pair_ptr[m]; p < pairs.pair_ptr[m + 1]; p++) {
        const Index i = pairs.i[p] - first, j = pairs.j[p] - first;
        upper[i * padded + j] = upper[j * padded + i] =
            g[p * channels + c] * logits.scale / T(2 * heads);
      }
      for (Index h = 0; h < heads; h++) {
        for (Index i = 0; i < n; i++) {
          logits.tanh_row(i, h);
          const T *row = logits.row, *of_row = upper + i * padded;
          T* __restrict slope = slopes + i * padded;
          for (Index a = 0; a < padded; a++) slope[a] = of_row[a] * (1 - row[a] * row[a]);
          for (Index a = 0; a < n; a++) turned[a * padded + i] = slope[a];
        }
        for (Index d = h * chunk; d < (h + 1) * chunk; d++)
          for (Index a = 0; a < padded; a += Lanes<T>::count) {
            Vector<T> of_keys{}, of_queries{};
            for (Index i = 0; i < n; i++) {
              const Index row = i * padded + a;
              of_keys += logits.query[i * width + d] * *vector_at(slopes + row);
              of_queries += logits.keys[d * padded + i] * *vector_at(turned + row);
            }
            *vector_at(key_grad + d * padded + a) = of_keys;
            *vector_at(query_grad + d * padded + a) = of_queries;
          }
      }
      for (Index a = 0; a < n; a++)
        for (Index d = 0; d < width; d++) {
          gq[at + a * width + d] = query_grad[d * padded + a];
          gk[at + a * width + d] = key_grad[d * padded + a];
        }
    }
  });
}

}  // namespace msde

EXPORT(pair_sum)
EXPORT(pair_dot)
EXPORT(pair_attention)
EXPORT(pair_attention_grad)
