// Multi-head attention over the directed edges of molecules.
#pragma once

#include "graphs.hpp"
#include "maths.hpp"
#include "threads.hpp"

namespace msde {

// Attention of each atom over the edges into it (Shi et al. 2021):
//   s_eh = <q_i, k_j + b_e>_h / sqrt(dim),  alpha = softmax of s over the edges into i,
//   y_i = sum_e keep_eh alpha_eh (v_j + b_e)_h.
// `keep`, (edges, heads), is dropout's factor or null. Saves alpha, (edges, heads).
template <class T>
void edge_attention(const T* q, const T* k, const T* v, const T* b, const T* keep,
                    const Index* row_ptr, const Index* source, Index atoms, T* alpha,
                    T* y, Index heads, Index dim, Index threads) {
  const Index width = heads * dim;
  const T scale = T(1) / std::sqrt(T(dim));
  share_each(atoms, threads, [&](Index i) {
    const Index first = row_ptr[i], last = row_ptr[i + 1];
    T* product = scratch<T, 2>(width + 2 * heads);
    T *top = product + width, *total = top + heads;
    std::fill(top, top + heads, T(-1) / T(0));
    std::fill(total, total + heads, T(0));
    for (Index e = first; e < last; e++) {
      const T *kj = k + source[e] * width, *be = b + e * width, *qi = q + i * width;
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
      const T *vj = v + source[e] * width, *be = b + e * width;
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
                         const T* keep, const T* alpha, const Index* row_ptr,
                         const Index* source, const Index* ptr, Index molecules, T* gq, T* gk,
                         T* gv, T* gb, Index heads, Index dim, Index threads) {
  const Index width = heads * dim;
  const T scale = T(1) / std::sqrt(T(dim));
  share(molecules, threads, [&](Index m) {
    for (T* grad : {gq, gk, gv}) std::fill(grad + ptr[m] * width, grad + ptr[m + 1] * width, T(0));
    T* product = scratch<T, 2>(width + heads);
    T* total = product + width;
    for (Index i = ptr[m]; i < ptr[m + 1]; i++) {
      const Index first = row_ptr[i], last = row_ptr[i + 1];
      T* slopes = scratch<T, 3>((last - first) * heads);
      const T *gi = gy + i * width, *qi = q + i * width;
      std::fill(total, total + heads, T(0));
      for (Index e = first; e < last; e++) {
        const T *vj = v + source[e] * width, *be = b + e * width;
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
        const Index j = source[e] * width;
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

EXPORT(edge_attention)
EXPORT(edge_attention_grad)
