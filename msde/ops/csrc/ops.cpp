// The functions that Python calls, each for float (_f32) and double (_f64). Tensors come as
// pointers to contiguous memory; indices are 64-bit.
#include "dense.hpp"
#include "edge_mlp.hpp"
#include "edge_norm.hpp"
#include "fourier.hpp"
#include "frames.hpp"
#include "graphs.hpp"
#include "norms.hpp"
#include "noise.hpp"
#include "linear.hpp"

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

#define LAYER                                                                             \
  Index channels, Index shared, Index rows, Index inputs, Index outputs, Index weight_row, \
      Index activation
#define THE_LAYER                                              \
  channels, shared, rows, inputs, outputs, weight_row,         \
      static_cast<msde::Activation>(activation)

extern "C" {

void msde_group(const Index* key, Index count, Index keys, Index* ptr, Index* order) {
  msde::group(key, count, keys, ptr, order);
}

void msde_normals_f32(const Index* uid, const Index* item, Index rows, Index count, Index stream,
                      Index key_low, Index key_high, float* out, Index threads) {
  const msde::PhiloxKey key{msde::Word(key_low), msde::Word(key_high)};
  msde::Normals{uid, item, rows, count, msde::Word(stream), key}.run(out, threads);
}

void msde_dropout_factors_f32(Index size, Index stream, Index key_low, Index key_high,
                              Index threshold, double factor, float* out, Index threads) {
  const msde::PhiloxKey key{msde::Word(key_low), msde::Word(key_high)};
  msde::dropout_factors(size, msde::Word(stream), key, msde::Word(threshold), float(factor), out,
                        threads);
}

#define DEFINE(name, T)                                                                          \
  void msde_linear_##name(const T* x, const T* weight, const T* bias, LAYER, T* y, T* before,    \
                          const T* plus, Index threads) {                                        \
    msde::Dense<T>{x, weight, bias, THE_LAYER}.forward(y, before, plus, threads);                \
  }                                                                                              \
  void msde_linear_grad_##name(const T* g, const T* h, const T* x, const T* weight, LAYER,       \
                               Index small, T* gx, T* gz, T* parts, Index part_count, T* g_weight,\
                               T* g_bias, Index threads) {                                       \
    const msde::Dense<T> layer{x, weight, nullptr, THE_LAYER};                                   \
    if (small)                                                                                   \
      layer.backward_small(g, h, gx, parts, part_count, g_weight, g_bias, threads);              \
    else                                                                                         \
      layer.backward_large(g, h, gx, gz, parts, part_count, g_weight, g_bias,                    \
                           threads);                                                             \
  }                                                                                              \
  void msde_batch_norm_##name(const T* x, const T* weight, const T* bias, Index rows,            \
                              Index width, Index relu, double epsilon, T* parts,                 \
                              Index part_count, T* mean, T* variance, T* y, Index threads) {     \
    msde::BatchNorm<T>{x, weight, bias, rows, width, relu, T(epsilon)}                           \
        .forward(parts, part_count, mean, variance, y, threads);                                 \
  }                                                                                              \
  void msde_batch_norm_grad_##name(const T* g, const T* x, const T* weight, const T* bias,       \
                                   Index rows, Index width, Index relu, double epsilon,          \
                                   const T* mean, const T* variance, T* gx, T* parts,            \
                                   Index part_count, T* g_weight, T* g_bias, Index threads) {    \
    msde::BatchNorm<T>{x, weight, bias, rows, width, relu, T(epsilon)}                           \
        .backward(g, mean, variance, gx, parts, part_count, g_weight, g_bias, threads);          \
  }                                                                                              \
  void msde_edge_norm_##name(const T* a, const T* b, const T* weight, const T* bias,             \
                             const Index* row_ptr, const Index* source, Index atoms, Index width,\
                             double epsilon, T* parts, Index part_count, T* means, T* variance,  \
                             T* normed_a, T* normed_b, Index threads) {                          \
    msde::EdgeNorm<T>{a, b, weight, {row_ptr, source, atoms}, width, T(epsilon)}                 \
        .forward(bias, parts, part_count, means, variance, normed_a, normed_b, threads);         \
  }                                                                                              \
  void msde_edge_norm_grad_##name(const T* ga, const T* gb, const T* a, const T* b,              \
                                  const T* weight, const Index* row_ptr, const Index* source,    \
                                  Index atoms, Index width, double epsilon, const T* means,      \
                                  const T* variance, T* parts, Index part_count, T* sums,        \
                                  T* to_a, T* to_b, T* g_weight, T* g_bias, Index threads) {     \
    msde::EdgeNorm<T>{a, b, weight, {row_ptr, source, atoms}, width, T(epsilon)}                 \
        .backward(ga, gb, means, variance, parts, part_count, sums, to_a, to_b, g_weight, g_bias,\
                  threads);                                                                      \
  }                                                                                              \
  void msde_row_dot_##name(const T* x, const T* y, const Index* at, Index rows, Index others,    \
                           Index width, Index count, T* out, Index threads) {                    \
    msde::RowDot<T>{x, y, at, rows, others, width, count}.forward(out, threads);                 \
  }                                                                                              \
  void msde_row_dot_grad_##name(const T* g, const T* x, const T* y, const Index* at, Index rows, \
                                Index others, Index width, Index count, T* gx, T* gy,            \
                                Index threads) {                                                 \
    msde::RowDot<T>{x, y, at, rows, others, width, count}.backward(g, gx, gy, threads);          \
  }                                                                                              \
  void msde_fourier_linear_##name(const T* v, const T* frequency, const T* weight, Index rows,   \
                                  Index scalars, Index frequencies, Index outputs,               \
                                  const T* bias, T* y, Index threads) {                          \
    msde::FourierLinear<T>{v, frequency, weight, rows, scalars, frequencies, outputs}            \
        .forward(bias, y, threads);                                                              \
  }                                                                                              \
  void msde_fourier_linear_grad_##name(const T* g, const T* v, const T* frequency, Index rows,   \
                                       Index scalars, Index frequencies, Index outputs,          \
                                       T* parts, Index part_count, T* g_weight, T* g_bias,       \
                                       Index threads) {                                          \
    msde::FourierLinear<T>{v, frequency, nullptr, rows, scalars, frequencies, outputs}           \
        .backward(g, parts, part_count, g_weight, g_bias, threads);                              \
  }                                                                                              \
  void msde_edge_geometry_##name(const T* pos, const Index* edge_index, Index edges,             \
                                 double collinear, double epsilon, T* frames, T* of_source,      \
                                 T* of_target, T* angle, T* distance, Index threads) {           \
    msde::EdgeGeometry<T>{pos, edge_index, edge_index + edges, T(collinear), T(epsilon),         \
                          frames, of_source, of_target, angle, distance}                         \
        .run(edges, threads);                                                                    \
  }                                                                                              \
  void msde_frame_mean_##name(const T* b, const T* frames, const Index* row_ptr, Index atoms,    \
                              T* y, Index threads) {                                             \
    msde::frame_mean<T>(b, frames, row_ptr, atoms, y, threads);                                  \
  }                                                                                              \
  void msde_frame_mean_grad_##name(const T* g, const T* frames, const Index* row_ptr,            \
                                   Index atoms, T* gb, Index threads) {                          \
    msde::frame_mean_grad<T>(g, frames, row_ptr, atoms, gb, threads);                            \
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
                                    T* g_table, T* g_eps, Index codes, Index width,              \
                                    Index threads) {                                             \
    msde::gin_message_grad<T>(g, x, table, 1 + *eps, {row_ptr, source, atoms}, code, gx, parts,  \
                              part_count, g_table, g_eps, codes, width, threads);                \
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
                                 Index molecules, T* ga, T* gb, T* g_weight, T* g_attr,          \
                                 T* g_attr_weight, T* parts, Index part_count, Index threads) {  \
    msde::EdgeMLP<T>{a, b, attr, attr_weight, weight, nullptr, edge_index, edge_index + edges,   \
                     width, inputs, outputs, static_cast<msde::Activation>(activation)}          \
        .backward(g, ptr, edge_ptr, molecules, ga, gb, g_weight, g_attr, g_attr_weight, parts,   \
                  part_count, threads);                                                          \
  }

BOTH(DEFINE)

}  // extern "C"
