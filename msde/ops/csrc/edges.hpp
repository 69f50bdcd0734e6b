// Sums over the directed edges of molecules.
#pragma once

#include "pairs.hpp"

namespace msde {

// The edges into atom i are row_ptr[i] ... row_ptr[i + 1], from the atoms `source`.
struct Rows {
  const Index *row_ptr, *source;
  Index atoms;
};

// y_i = sum of x_j over the edges j -> i.
template <class T>
void sum_over_edges(const T* x, Rows rows, T* y, Index width, int threads) {
  share_each(rows.atoms, threads, [&](Index i) {
    T* __restrict to = y + i * width;
    std::fill(to, to + width, T(0));
    for (Index e = rows.row_ptr[i]; e < rows.row_ptr[i + 1]; e++) {
      const T* from = x + rows.source[e] * width;
      for (Index f = 0; f < width; f++) to[f] += from[f];
    }
  });
}

// y_i = own x_i + sum over bonds j -> i of relu(x_j + table[code]).
template <class T>
void gin_message(const T* x, const T* table, T own, Rows rows, const Index* code, T* y,
                 Index width, int threads) {
  share_each(rows.atoms, threads, [&](Index i) {
    T* __restrict to = y + i * width;
    for (Index f = 0; f < width; f++) to[f] = own * x[i * width + f];
    for (Index e = rows.row_ptr[i]; e < rows.row_ptr[i + 1]; e++) {
      const T *from = x + rows.source[e] * width, *bond = table + code[e] * width;
      for (Index f = 0; f < width; f++) to[f] += relu(from[f] + bond[f]);
    }
  });
}

// Gradients of gin_message. Bonds are stored both ways with one code, so the bonds out of atom j
// are those into it: gx_j = own g_j + sum_i relu'(x_j + table[code]) g_i, and the same
// terms summed by code are the table's gradient. `parts` is (part_count, codes * width + 1).
template <class T>
void gin_message_grad(const T* g, const T* x, const T* table, T own, Rows rows, const Index* code,
                      T* gx, T* parts, Index part_count, T* table_grad, T* own_grad, Index codes,
                      Index width, int threads) {
  const Index size = codes * width + 1;
  share_parts(rows.atoms, part_count, threads, [&](Index part, Index first, Index last) {
    T* mine = parts + part * size;
    std::fill(mine, mine + size, T(0));
    T of_own = 0;
    for (Index j = first; j < last; j++) {
      const T* xj = x + j * width;
      T* __restrict to = gx + j * width;
      for (Index f = 0; f < width; f++) to[f] = own * g[j * width + f];
      of_own += dot(g + j * width, xj, width);
      for (Index e = rows.row_ptr[j]; e < rows.row_ptr[j + 1]; e++) {
        const T *from = g + rows.source[e] * width, *bond = table + code[e] * width;
        T* __restrict of_bond = mine + code[e] * width;
        for (Index f = 0; f < width; f++) {
          const T term = relu_grad(from[f], xj[f] + bond[f]);
          to[f] += term;
          of_bond[f] += term;
        }
      }
    }
    mine[size - 1] = of_own;
  });
  add_parts(parts, part_count, size, size - 1, table_grad, threads);
  add_parts(parts + size - 1, part_count, size, 1, own_grad, threads);
}

// Attention of each atom over the edges into it (Shi et al. 2021):
//   s_eh = <q_i, k_j + b_e>_h / sqrt(dim),  alpha = softmax of s over the edges into i,
//   y_i = sum_e keep_eh alpha_eh (v_j + b_e)_h.
// `keep`, (edges, heads), is dropout's factor or null. Saves alpha, (edges, heads).
template <class T>
void edge_attention(const T* q, const T* k, const T* v, const T* b, const T* keep, Rows rows,
                    T* alpha, T* y, Index heads, Index dim, int threads) {
  const Index width = heads * dim;
  const T scale = T(1) / std::sqrt(T(dim));
  share_each(rows.atoms, threads, [&](Index i) {
    const Index first = rows.row_ptr[i], last = rows.row_ptr[i + 1];
    T* product = scratch<T, 2>(width + 2 * heads);
    T *top = product + width, *total = top + heads;
    std::fill(top, top + heads, T(-1) / T(0));
    std::fill(total, total + heads, T(0));
    for (Index e = first; e < last; e++) {
      const T *kj = k + rows.source[e] * width, *be = b + e * width, *qi = q + i * width;
      for (Index f = 0; f < width; f++) product[f] = qi[f] * (kj[f] + be[f]);
      for (Index h = 0; h < heads; h++) {
        T sum = 0;
        for (Index d = 0; d < dim; d++) sum += product[h * dim + d];
        sum *= scale;
        alpha[e * heads + h] = sum;
        top[h] = sum > top[h] ? sum : top[h];
      }
    }
    for (Index e = first; e < last; e++)
      for (Index h = 0; h < heads; h++) {
        const T weight = exponential(alpha[e * heads + h] - top[h]);
        alpha[e * heads + h] = weight;
        total[h] += weight;
      }
    T* __restrict to = y + i * width;
    std::fill(to, to + width, T(0));
    for (Index e = first; e < last; e++) {
      const T *vj = v + rows.source[e] * width, *be = b + e * width;
      for (Index h = 0; h < heads; h++) {
        const T weight = alpha[e * heads + h] /= total[h];
        const T kept = keep ? weight * keep[e * heads + h] : weight;
        for (Index d = h * dim; d < (h + 1) * dim; d++) to[d] += kept * (vj[d] + be[d]);
      }
    }
  });
}

// Gradients of edge_attention, with u_eh = keep_eh <gy_i, v_j + b_e>_h:
//   ds_eh = alpha_eh (u_eh - sum over the edges into i of alpha u) / sqrt(dim),
//   gq_i = sum_e ds (k_j + b_e), gk_j += ds q_i, gv_j += keep alpha gy_i, gb_e = the last two.
template <class T>
void edge_attention_grad(const T* gy, const T* q, const T* k, const T* v, const T* b,
                         const T* keep, const T* alpha, Rows rows, const Index* ptr,
                         Index molecules, T* gq, T* gk, T* gv, T* gb, Index heads, Index dim,
                         int threads) {
  const Index width = heads * dim;
  const T scale = T(1) / std::sqrt(T(dim));
  share(molecules, threads, [&](Index m) {
    for (T* grad : {gq, gk, gv}) std::fill(grad + ptr[m] * width, grad + ptr[m + 1] * width, T(0));
    T* product = scratch<T, 2>(width + heads);
    T* total = product + width;
    for (Index i = ptr[m]; i < ptr[m + 1]; i++) {
      const Index first = rows.row_ptr[i], last = rows.row_ptr[i + 1];
      T* slopes = scratch<T, 3>((last - first) * heads);
      const T *gi = gy + i * width, *qi = q + i * width;
      std::fill(total, total + heads, T(0));
      for (Index e = first; e < last; e++) {
        const T *vj = v + rows.source[e] * width, *be = b + e * width;
        for (Index f = 0; f < width; f++) product[f] = gi[f] * (vj[f] + be[f]);
        for (Index h = 0; h < heads; h++) {
          T sum = 0;
          for (Index d = 0; d < dim; d++) sum += product[h * dim + d];
          if (keep) sum *= keep[e * heads + h];
          slopes[(e - first) * heads + h] = sum;
          total[h] += alpha[e * heads + h] * sum;
        }
      }
      T* __restrict gqi = gq + i * width;
      for (Index e = first; e < last; e++) {
        const Index j = rows.source[e] * width;
        const T *kj = k + j, *be = b + e * width;
        T *__restrict gkj = gk + j, *__restrict gvj = gv + j, *__restrict gbe = gb + e * width;
        for (Index h = 0; h < heads; h++) {
          const T weight = alpha[e * heads + h];
          const T slope = weight * (slopes[(e - first) * heads + h] - total[h]) * scale;
          const T kept = keep ? weight * keep[e * heads + h] : weight;
          for (Index d = h * dim; d < (h + 1) * dim; d++) {
            const T of_key = slope * qi[d], of_value = kept * gi[d];
            gqi[d] += slope * (kj[d] + be[d]);
            gkj[d] += of_key;
            gvj[d] += of_value;
            gbe[d] = of_key + of_value;
          }
        }
      }
    }
  });
}

}  // namespace msde
