// Sums of messages over the directed edges of molecules.
#pragma once

#include "graphs.hpp"
#include "maths.hpp"
#include "threads.hpp"

namespace msde {

// y_i = sum of x_j over the edges j -> i.
template <class T>
void sum_over_edges(const T* x, const Index* row_ptr, const Index* source, Index atoms, T* y,
                    Index width, Index threads) {
  share_each(atoms, threads, [&](Index i) {
    T* __restrict to = y + i * width;
    std::fill(to, to + width, T(0));
    for (Index e = row_ptr[i]; e < row_ptr[i + 1]; e++) {
      const T* from = x + source[e] * width;
      for (Index f = 0; f < width; f++) to[f] += from[f];
    }
  });
}

// y_i = (1 + eps) x_i + sum over bonds j -> i of relu(x_j + table[code]).
template <class T>
void gin_message(const T* x, const T* table, const T* eps, const Index* row_ptr,
                 const Index* source, Index atoms, const Index* code, T* y, Index width,
                 Index threads) {
  const T own = 1 + *eps;
  share_each(atoms, threads, [&](Index i) {
    T* __restrict to = y + i * width;
    for (Index f = 0; f < width; f++) to[f] = own * x[i * width + f];
    for (Index e = row_ptr[i]; e < row_ptr[i + 1]; e++) {
      const T *from = x + source[e] * width, *bond = table + code[e] * width;
      for (Index f = 0; f < width; f++) to[f] += relu(from[f] + bond[f]);
    }
  });
}

// Gradients of gin_message. Bonds are stored both ways with one code, so the bonds out of atom j
// are those into it: gx_j = (1 + eps) g_j + sum_i relu'(x_j + table[code]) g_i, and the
// same terms summed by code are the table's gradient. `parts` is (part_count, codes * width + 1).
template <class T>
void gin_message_grad(const T* g, const T* x, const T* table, const T* eps, const Index* row_ptr,
                      const Index* source, Index atoms, const Index* code, T* gx, T* parts,
                      Index part_count, T* table_grad, T* eps_grad, Index codes, Index width,
                      Index threads) {
  const T own = 1 + *eps;
  const Index size = codes * width + 1;
  share_parts(atoms, part_count, threads, [&](Index part, Index first, Index last) {
    T* mine = parts + part * size;
    std::fill(mine, mine + size, T(0));
    T of_own = 0;
    for (Index j = first; j < last; j++) {
      const T* xj = x + j * width;
      T* __restrict to = gx + j * width;
      for (Index f = 0; f < width; f++) to[f] = own * g[j * width + f];
      of_own += dot(g + j * width, xj, width);
      for (Index e = row_ptr[j]; e < row_ptr[j + 1]; e++) {
        const T *from = g + source[e] * width, *bond = table + code[e] * width;
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
  add_parts(parts + size - 1, part_count, size, 1, eps_grad, threads);
}

}  // namespace msde

EXPORT(sum_over_edges)
EXPORT(gin_message)
EXPORT(gin_message_grad)
