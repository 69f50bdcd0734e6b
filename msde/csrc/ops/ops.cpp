// The functions that Python calls, each for float (_f32) and double (_f64). Tensors come as
// pointers to contiguous memory; indices are 64-bit.
#include "edge_mlp.hpp"
#include "matmul.hpp"

using msde::Index;
using msde::Knots;
using msde::Pairs;
using msde::Rows;

#define BOTH(DEFINE) \
  DEFINE(f32, float) \
  DEFINE(f64, double)

#define PAIRS const Index *pair_index, const Index *ptr, const Index *pair_ptr, Index molecules
#define THE_PAIRS \
  Pairs { pair_index, pair_index + pair_ptr[molecules], ptr, pair_ptr, molecules }

extern "C" {

// Sort the numbers 0 ... count - 1 by key, stably: those of key k from ptr[k] to ptr[k + 1].
void msde_group(const Index* key, Index count, Index keys, Index* ptr, Index* order) {
  std::fill(ptr, ptr + keys + 1, Index(0));
  for (Index n = 0; n < count; n++) ptr[key[n] + 1]++;
  for (Index k = 0; k < keys; k++) ptr[k + 1] += ptr[k];
  Index* at = msde::scratch<Index, 7>(keys);
  std::copy(ptr, ptr + keys, at);
  for (Index n = 0; n < count; n++) order[at[key[n]]++] = n;
}

#define DEFINE(name, T)                                                                          \
  void msde_matmul_##name(const T* a, Index a_row, Index a_column, const T* b, Index b_row,      \
                          Index b_column, const T* bias, T* c, Index rows, Index depth,          \
                          Index columns, Index threads) {                                        \
    msde::Matmul<T>{{a, a_row, a_column}, {b, b_row, b_column}, bias, c, rows, depth, columns}   \
        .run(threads);                                                                           \
  }                                                                                              \
  void msde_interpolated_conv_##name(const T* x, const T* table, const Index* first,             \
                                     const T* weight, PAIRS, T* y, Index width, Index threads) { \
    msde::interpolated_conv<T>(x, table, {first, weight}, THE_PAIRS, y, width, threads);         \
  }                                                                                              \
  void msde_interpolated_table_grad_##name(                                                      \
      const T* x, const T* g, const Index* first, const T* weight, PAIRS, const Index* order,    \
      const Index* cell_ptr, T* parts, T* out, Index cells, Index width, Index threads) {        \
    msde::interpolated_table_grad<T>(x, g, {first, weight}, THE_PAIRS, order, cell_ptr, parts, out,\
                                     cells, width, threads);                                     \
  }                                                                                              \
  void msde_pair_sum_##name(const T* weight, const T* x, PAIRS, T* y, Index channels,            \
                            Index width, Index threads) {                                        \
    msde::pair_sum<T>(weight, x, THE_PAIRS, y, channels, width, threads);                        \
  }                                                                                              \
  void msde_pair_dot_##name(const T* x, const T* g, PAIRS, T* out, Index channels, Index width,  \
                            Index threads) {                                                     \
    msde::pair_dot<T>(x, g, THE_PAIRS, out, channels, width, threads);                           \
  }                                                                                              \
  void msde_pair_attention_##name(const T* q, const T* k, PAIRS, T* out, Index channels,         \
                                  Index width, Index chunk, Index threads) {                     \
    msde::pair_attention<T>(q, k, THE_PAIRS, out, channels, width, chunk, threads);              \
  }                                                                                              \
  void msde_pair_attention_grad_##name(const T* g, const T* q, const T* k, PAIRS, T* gq, T* gk,  \
                                       Index channels, Index width, Index chunk,                 \
                                       Index threads) {                                          \
    msde::pair_attention_grad<T>(g, q, k, THE_PAIRS, gq, gk, channels, width, chunk, threads);   \
  }                                                                                              \
  void msde_sum_over_edges_##name(const T* x, const Index* row_ptr, const Index* source,         \
                                  Index atoms, T* y, Index width, Index threads) {               \
    msde::sum_over_edges<T>(x, {row_ptr, source, atoms}, y, width, threads);                     \
  }                                                                                              \
  void msde_gin_message_##name(const T* x, const T* table, const T* eps, const Index* row_ptr,   \
                               const Index* source, Index atoms, const Index* code, T* y,        \
                               Index width, Index threads) {                                     \
    msde::gin_message<T>(x, table, 1 + *eps, {row_ptr, source, atoms}, code, y, width, threads); \
  }                                                                                              \
  void msde_gin_message_grad_##name(const T* g, const T* x, const T* table, const T* eps,        \
                                    const Index* row_ptr, const Index* source, Index atoms,      \
                                    const Index* code, T* gx, T* parts, Index part_count,        \
                                    T* grads, Index codes, Index width, Index threads) {         \
    msde::gin_message_grad<T>(g, x, table, 1 + *eps, {row_ptr, source, atoms}, code, gx, parts,  \
                              part_count, grads, codes, width, threads);                         \
  }                                                                                              \
  void msde_edge_attention_##name(const T* q, const T* k, const T* v, const T* b, const T* keep, \
                                  const Index* row_ptr, const Index* source, Index atoms,        \
                                  T* alpha, T* y, Index heads, Index dim, Index threads) {       \
    msde::edge_attention<T>(q, k, v, b, keep, {row_ptr, source, atoms}, alpha, y, heads, dim,    \
                            threads);                                                            \
  }                                                                                              \
  void msde_edge_attention_grad_##name(                                                          \
      const T* gy, const T* q, const T* k, const T* v, const T* b, const T* keep,                \
      const T* alpha, const Index* row_ptr, const Index* source, Index atoms, const Index* ptr,  \
      Index molecules, T* gq, T* gk, T* gv, T* gb, Index heads, Index dim, Index threads) {      \
    msde::edge_attention_grad<T>(gy, q, k, v, b, keep, alpha, {row_ptr, source, atoms}, ptr,     \
                                 molecules, gq, gk, gv, gb, heads, dim, threads);                \
  }                                                                                              \
  void msde_edge_mlp_##name(const T* a, const T* b, const T* attr, const T* attr_weight,         \
                            const T* weight, const T* bias, const Index* edge_index,             \
                            Index width, Index inputs, Index outputs, Index activation,          \
                            Index edges, T* out, Index threads) {                                \
    msde::EdgeMLP<T>{a, b, attr, attr_weight, weight, bias, edge_index, edge_index + edges,      \
                     width, inputs, outputs, static_cast<msde::Activation>(activation)}          \
        .forward(edges, out, threads);                                                           \
  }                                                                                              \
  void msde_edge_mlp_grad_##name(const T* g, const T* a, const T* b, const T* attr,              \
                                 const T* attr_weight, const T* weight, const Index* edge_index, \
                                 Index width, Index inputs, Index outputs, Index activation,     \
                                 Index edges, const Index* ptr, const Index* edge_ptr,           \
                                 Index molecules, T* ga, T* gb, T* g_attr, T* parts,             \
                                 Index part_count, T* g_weights, Index threads) {                \
    msde::EdgeMLP<T>{a, b, attr, attr_weight, weight, nullptr, edge_index, edge_index + edges,   \
                     width, inputs, outputs, static_cast<msde::Activation>(activation)}          \
        .backward(g, ptr, edge_ptr, molecules, ga, gb, g_attr, parts, part_count, g_weights,     \
                  threads);                                                                      \
  }

BOTH(DEFINE)

}  // extern "C"
