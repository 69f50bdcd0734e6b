// What every atom of a molecule takes from all others: moves, and attention with features of edges.
// The features are made, used and forgotten; only what is summed over edges leaves.
#pragma once

#include <limits>

#include "gemm.hpp"
#include "graphs.hpp"
#include "maths.hpp"
#include "threads.hpp"

namespace msde {

// For each edge j -> i of the complete graph of a molecule, with d the distance of its atoms,
//   h_ij = silu(a_j + b_i + V [known_ij, Gaussians of log(1 + d)]),   e_ij = W h_ij + bias,
//   moves_i = sum over j of the last number of e_ij times (x_i - x_j) / (1 + d),
//   y_i = attention of q_i over k_j + e_ij and v_j + e_ij, with the other numbers of e_ij.
// Pairs share V [...]. Of e_ij only scalar products with q_i and sums over j are needed, and these
// are made from h_ij: <q_i, W h_ij> = <W^T q_i, h_ij>, sum_j alpha_j W h_ij = W sum_j alpha_j h_ij.
// The bias adds the same to all logits of a head, so it is left out of them.
template <class T>
struct AllPairs {
  const T *pos, *a, *b, *known, *attr_weight, *weight, *bias, *q, *k, *v;
  Index width, knowns, gaussians, heads, dim;  // heads is 0 where only moves are wanted
  T spacing, epsilon;

  Index outputs() const { return heads * dim + 1; }
  Index inputs() const { return knowns + gaussians; }
  Index columns() const { return heads + 1; }

  // V [...] of `count` pairs of a molecule, and 1 / (1 + d); `i` and `j` are their atoms.
  void shared_layer(const T* known_rows, const Index* i, const Index* j, Index count,
                    const T* packed, T* attr, T* layer, T* inverse) const {
    for (Index p = 0; p < count; p++) {
      const T *x = pos + 3 * i[p], *y = pos + 3 * j[p];
      T square = epsilon;
      for (int c = 0; c < 3; c++) square += (x[c] - y[c]) * (x[c] - y[c]);
      const T distance = std::sqrt(square);
      const T place = std::log1p(distance) / spacing;
      inverse[p] = T(1) / (T(1) + distance);
      T* __restrict row = attr + p * inputs();
      std::copy(known_rows + p * knowns, known_rows + (p + 1) * knowns, row);
      row += knowns;
      for (Index g = 0; g < gaussians; g++) {
        const T x = place - T(g);
        row[g] = exponential(T(-0.5) * x * x);
      }
    }
    product(View<T>{attr, inputs(), 1}, count, inputs(), packed, width, layer, width, false);
  }

  static Index number(Index i, Index j) {  // of a pair, whichever atom comes first
    return i < j ? j * (j - 1) / 2 + i : i * (i - 1) / 2 + j;
  }

  // One molecule of n atoms from `first` on, whose pairs i < j are numbered j (j - 1) / 2 + i.
  // `packed` holds V^T, and then W^T of each head.
  void molecule(Index first, Index n, const T* known_rows, const T* packed, T* moves, T* y) const {
    const Index pairs = n * (n - 1) / 2, all = heads * dim, wide = columns();
    T* layer = scratch<T, 5>(pairs * (width + 1) + TILE * inputs() + n * wide * width +
                             heads * n * n);
    T *inverse = layer + pairs * width, *attr = inverse + pairs, *asked = attr + TILE * inputs();
    T* alpha = asked + n * wide * width;  // (heads, n, n): first <q_i, k_j>, then the attention
    Index* atoms = scratch<Index, 6>(2 * pairs);
    for (Index j = 1, p = 0; j < n; j++)
      for (Index i = 0; i < j; i++, p++) atoms[p] = first + i, atoms[pairs + p] = first + j;
    for (Index p = 0; p < pairs; p += TILE)
      shared_layer(known_rows + p * knowns, atoms + p, atoms + pairs + p,
                   std::min(TILE, pairs - p), packed, attr, layer + p * width, inverse + p);
    ask(first, n, asked, alpha);
    for (Index i = 0; i < n; i++) atom(first, n, i, layer, inverse, asked, alpha, moves);
    const T* weight_of_head = packed + inputs() * panels<T>(width) * COLS<T>;
    for (Index head = 0; head < heads; head++) {
      T* to = y + first * all + head * dim;
      multiply(View<T>{alpha + head * n * n, n, 1}, n, n, v + first * all + head * dim, all, dim,
               to, all);
      product(View<T>{asked + head * width, wide * width, 1}, n, width, weight_of_head, dim, to,
              all, true);
      weight_of_head += width * panels<T>(dim) * COLS<T>;
      if (n == 1) continue;
      for (Index i = 0; i < n; i++)
        for (Index d = 0; d < dim; d++) to[i * all + d] += bias[head * dim + d];
    }
  }

  // c (rows, cols) = a (rows, depth) b (depth, cols), the rows of b and c some distance apart.
  static void multiply(View<T> a, Index rows, Index depth, const T* b, Index ldb, Index cols, T* c,
                       Index ldc) {
    if (in_pairs<T>()) {
      T* packed = scratch<T, 2>(depth * panels<T>(cols) * COLS<T>);
      pack(View<T>{b, ldb, 1}, depth, cols, packed);
      return product(a, rows, depth, packed, cols, c, ldc, false);
    }
    for (Index f = 0; f < cols; f += COLS<T>) {
      const Index some = std::min<Index>(COLS<T>, cols - f);
      T* panel = scratch<T, 2>(depth * COLS<T>);
      if (some < COLS<T>) pack_panel(View<T>{b, ldb, 1}, depth, cols, f, panel);
      stripe(a, rows, some < COLS<T> ? panel : b + f, some < COLS<T> ? COLS<T> : ldb, depth, c + f,
             ldc, some, false);
    }
  }

  // Of each atom W^T q by heads, and the row of W that gives moves: (n, heads + 1, width); and
  // <q_i, k_j>, (heads, n, n).
  void ask(Index first, Index n, T* asked, T* alpha) const {
    const Index all = heads * dim, wide = columns();
    for (Index head = 0; head < heads; head++) {
      const View<T> query{q + first * all + head * dim, all, 1};
      multiply(query, n, dim, weight + head * dim * width, width, width, asked + head * width,
               wide * width);
      T* keys = scratch<T, 3>(dim * panels<T>(n) * COLS<T>);
      pack(View<T>{k + first * all + head * dim, 1, all}, dim, n, keys);
      product(query, n, dim, keys, n, alpha + head * n * n, n, false);
    }
    for (Index i = 0; i < n; i++)
      std::copy(weight + all * width, weight + outputs() * width,
                asked + (i * wide + heads) * width);
  }

  // Make the moves of atom i, its attention, and from `asked` sum_j alpha_j h_ij of each head.
  void atom(Index first, Index n, Index i, const T* layer, const T* inverse, T* asked, T* alpha,
            T* moves) const {
    const Index wide = columns();
    T* h = scratch<T, 1>(n * width + width * panels<T>(wide) * COLS<T> + n * wide);
    T *turned = h + n * width, *logits = turned + width * panels<T>(wide) * COLS<T>;
    const T* mine = b + (first + i) * width;
    for (Index j = 0; j < n; j++) {
      T* __restrict row = h + j * width;
      if (i == j) {  // has no edge: its share of the attention will be zero
        std::fill(row, row + width, T(0));
        continue;
      }
      const T *pair = layer + number(i, j) * width, *its = a + (first + j) * width;
      for (Index f = 0; f < width; f++) row[f] = its[f] + mine[f] + pair[f];
    }
    activate(SILU, h, n * width);
    asked += i * wide * width;
    pack(View<T>{asked, 1, width}, width, wide, turned);
    product(View<T>{h, width, 1}, n, width, turned, wide, logits, wide, false);
    move(first, n, i, logits, inverse, moves + 3 * (first + i));
    for (Index head = 0; head < heads; head++)
      normalise(n, i, logits + head, alpha + (head * n + i) * n);
    if (heads)
      multiply(View<T>{alpha + i * n, n * n, 1}, heads, n, h, width, width, asked, width);
  }

  void move(Index first, Index n, Index i, const T* logits, const T* inverse, T* out) const {
    T sum[3] = {0, 0, 0};
    const T* x = pos + 3 * (first + i);
    for (Index j = 0; j < n; j++) {
      if (i == j) continue;
      const T size = (logits[j * columns() + heads] + bias[heads * dim]) * inverse[number(i, j)];
      for (int c = 0; c < 3; c++) sum[c] += size * (x[c] - pos[3 * (first + j) + c]);
    }
    std::copy(sum, sum + 3, out);
  }

  // Turn <q_i, k_j> and <q_i, W h_ij> of a head into the attention of atom i, in place of the
  // first.
  void normalise(Index n, Index i, const T* logits, T* __restrict row) const {
    const T scale = T(1) / std::sqrt(T(dim));
    for (Index j = 0; j < n; j++) row[j] = (row[j] + logits[j * columns()]) * scale;
    row[i] = -std::numeric_limits<T>::infinity();
    const T top = *std::max_element(row, row + n);
    T sum = 0;
    for (Index j = 0; j < n; j++) row[j] = exponential(row[j] - top);
    row[i] = 0;
    for (Index j = 0; j < n; j++) sum += row[j];
    for (Index j = 0; j < n && n > 1; j++) row[j] /= sum;
  }
};

// `known` is (pairs, knowns), molecule after molecule, pairs in the order of AllPairs::molecule.
template <class T>
void all_pairs(const T* pos, const T* a, const T* b, const T* known, const T* attr_weight,
               const T* weight, const T* bias, const T* q, const T* k, const T* v,
               const Index* ptr, const Index* pair_ptr, Index molecules, Index width, Index knowns,
               Index gaussians, Index heads, Index dim, double spacing, double epsilon, T* moves,
               T* y, Index threads) {
  const AllPairs<T> op{pos,   a,      b,         known, attr_weight, weight,     bias,      q, k, v,
                       width, knowns, gaussians, heads, dim,         T(spacing), T(epsilon)};
  const Index size = op.inputs() * panels<T>(width) * COLS<T>;
  const Index of_head = width * panels<T>(dim) * COLS<T>;
  T* packed = scratch<T, 4>(size + heads * of_head);
  pack(View<T>{attr_weight, 1, op.inputs()}, op.inputs(), width, packed);
  for (Index head = 0; head < heads; head++)
    pack(View<T>{weight + head * dim * width, 1, width}, width, dim, packed + size + head * of_head);
  share(molecules, threads, [&](Index m) {
    op.molecule(ptr[m], ptr[m + 1] - ptr[m], known + pair_ptr[m] * knowns, packed, moves, y);
  });
}

}  // namespace msde

EXPORT(all_pairs)
