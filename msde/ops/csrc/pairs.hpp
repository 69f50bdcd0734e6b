// Sums over the unordered pairs of atoms of molecules. A molecule has one owner: the threads share
// the molecules, so nothing is written by two of them and every sum has one order.
#pragma once

#include "matmul.hpp"

namespace msde {

// The pairs of a batch: atoms of molecule m from ptr[m] on, its pairs from pair_ptr[m] on.
struct Pairs {
  const Index *i, *j, *ptr, *pair_ptr;
  Index molecules;
};

// Where the filters of pairs stand: between the rows of a table, see interpolated_conv.
template <class T>
struct Knots {
  const Index* first;  // (pairs,) the first of four neighbouring rows
  const T* weight;     // (pairs, 4)
};

// y_i = sum_j W_ij x_j with W_ij = sum_q weight_q table[first + q], for i and j both ways.
template <class T>
void interpolated_conv(const T* x, const T* table, Knots<T> at, Pairs pairs, T* y, Index width,
                       int threads) {
  share(pairs.molecules, threads, [&](Index m) {
    std::fill(y + pairs.ptr[m] * width, y + pairs.ptr[m + 1] * width, T(0));
    for (Index p = pairs.pair_ptr[m]; p < pairs.pair_ptr[m + 1]; p++) {
      const T* w = at.weight + 4 * p;
      const T w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
      if (w0 == 0 && w1 == 0 && w2 == 0 && w3 == 0) continue;  // beyond the cutoff
      const T *t0 = table + at.first[p] * width, *t1 = t0 + width, *t2 = t1 + width,
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

// The gradient of the table: out[first + q] += weight_q (x_i g_j + x_j g_i).
// Pairs are taken in `order`, those of first = k from cell_ptr[k] to cell_ptr[k + 1]. Each such
// cell makes four rows of `parts`, (cells, 4, width), which are then added up row by row.
template <class T>
void interpolated_table_grad(const T* x, const T* g, Knots<T> at, Pairs pairs, const Index* order,
                             const Index* cell_ptr, T* parts, T* out, Index cells, Index width,
                             int threads) {
  share_each(cells, threads, [&](Index k) {
    if (cell_ptr[k] == cell_ptr[k + 1]) return;
    T* __restrict sum = parts + k * 4 * width;
    std::fill(sum, sum + 4 * width, T(0));
    for (Index s = cell_ptr[k]; s < cell_ptr[k + 1]; s++) {
      const Index p = order[s], i = pairs.i[p] * width, j = pairs.j[p] * width;
      const T *xi = x + i, *xj = x + j, *gi = g + i, *gj = g + j, *w = at.weight + 4 * p;
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

// y_ci = sum_j weight_pc x_cj for both ways of each pair p = (i, j); weight (pairs, channels),
// x and y (channels, atoms, width).
template <class T>
void pair_sum(const T* weight, const T* x, Pairs pairs, T* y, Index channels, Index width,
              int threads) {
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

// The sum of `bytes` / sizeof(T) numbers side by side, by halving.
template <class T, int bytes>
T total(const void* numbers) {
  if constexpr (bytes == sizeof(T)) {
    T one;
    std::memcpy(&one, numbers, sizeof one);
    return one;
  } else {
    typedef T Half __attribute__((vector_size(bytes / 2)));
    Half low, high;
    std::memcpy(&low, numbers, sizeof low);
    std::memcpy(&high, static_cast<const char*>(numbers) + sizeof low, sizeof high);
    low += high;
    return total<T, bytes / 2>(&low);
  }
}

template <class T>
T dot(const T* a, const T* b, Index width) {
  constexpr int L = Lanes<T>::count;
  Vector<T> sums{};
  Index f = 0;
  for (; f + L <= width; f += L) sums += *vector_at(a + f) * *vector_at(b + f);
  T rest = 0;
  for (; f < width; f++) rest += a[f] * b[f];
  return total<T, VECTOR_BYTES>(&sums) + rest;
}

// The gradient of the weights of pair_sum: out_pc = <x_ci, g_cj> + <x_cj, g_ci>.
template <class T>
void pair_dot(const T* x, const T* g, Pairs pairs, T* out, Index channels, Index width,
              int threads) {
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

// out_pc = 1 / (2 heads) sum over heads of tanh(q_i.k_j / sqrt(chunk)) + tanh(q_j.k_i / sqrt(chunk))
// for p = (i, j); q and k are (channels, atoms, heads * chunk), out is (pairs, channels).
template <class T>
void pair_attention(const T* q, const T* k, Pairs pairs, T* out, Index channels, Index width,
                    Index chunk, int threads) {
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

// Gradients of pair_attention with the tanh made again: d tanh(s) = (1 - tanh(s)^2) ds.
template <class T>
void pair_attention_grad(const T* g, const T* q, const T* k, Pairs pairs, T* gq, T* gk,
                         Index channels, Index width, Index chunk, int threads) {
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
