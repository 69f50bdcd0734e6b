// out_e = W act(a_source + b_target [+ V attr_e]) + bias for each edge, a tile of edges at a time:
// the hidden layer stays in cache, and is recomputed for the gradients.
#pragma once

#include "gemm.hpp"
#include "maths.hpp"
#include "threads.hpp"

namespace msde {

template <class T>
struct EdgeMLP {
  const T *a, *b, *attr, *attr_weight, *weight, *bias;  // there is attr where there are inputs
  const Index *source, *target;
  Index width, inputs, outputs;  // of the hidden layer, of attr, of the result
  Activation activation;

  Index hidden_size() const { return TILE * width; }

  // The hidden layer of `count` edges from `first` on, before the activation.
  void hidden(Index first, Index count, const T* packed_attr_weight, T* out) const {
    for (Index e = 0; e < count; e++) {
      const T *from = a + source[first + e] * width, *to = b + target[first + e] * width;
      T* __restrict row = out + e * width;
      for (Index f = 0; f < width; f++) row[f] = from[f] + to[f];
    }
    if (inputs)
      product(View<T>{attr + first * inputs, inputs, 1}, count, inputs, packed_attr_weight, width,
              out, width, true);
  }

  // V^T, (inputs, width), and W^T, (width, outputs), packed one after the other.
  T* pack_weights() const {
    const Index size = inputs ? inputs * panels<T>(width) * COLS<T> : 0;
    T* packed = scratch<T, 4>(size + width * panels<T>(outputs) * COLS<T>);
    if (inputs) pack(View<T>{attr_weight, 1, inputs}, inputs, width, packed);
    pack(View<T>{weight, 1, width}, width, outputs, packed + size);
    return packed;
  }

  void forward(Index edges, T* out, int threads) const {
    const T* packed = pack_weights();
    const T* packed_weight = packed + (inputs ? inputs * panels<T>(width) * COLS<T> : 0);
    share_rows(edges, TILE, threads, [&](Index first, Index count) {
      T* h = scratch<T, 5>(hidden_size());
      hidden(first, count, packed, h);
      activate(activation, h, count * width);
      T* to = out + first * outputs;
      product(View<T>{h, width, 1}, count, width, packed_weight, outputs, to, outputs, false);
      add_bias(bias, count, outputs, to);
    });
  }

  // Gradients from g, (edges, outputs). Molecule m has atoms from ptr[m] on and edges from
  // edge_ptr[m] on; each part of the molecules sums its own gradient of the weights, laid out as
  // W, (outputs, width), and V, (width, inputs), in `parts`, (part_count, both).
  void backward(const T* g, const Index* ptr, const Index* edge_ptr, Index molecules, T* ga, T* gb,
                T* g_weight, T* g_attr, T* g_attr_weight, T* parts, Index part_count,
                int threads) const {
    const Index size = outputs * width + (inputs ? width * inputs : 0);
    const T* packed = pack_weights();
    // W, (outputs, width), and V, (width, inputs), as they are
    const Index half = outputs * panels<T>(width) * COLS<T>;
    T* back = scratch<T, 6>(half + (inputs ? width * panels<T>(inputs) * COLS<T> : 0));
    pack(View<T>{weight, width, 1}, outputs, width, back);
    if (inputs) pack(View<T>{attr_weight, inputs, 1}, width, inputs, back + half);
    share_parts(molecules, part_count, threads, [&](Index part, Index begin, Index end) {
      T* mine = parts + part * size;
      std::fill(mine, mine + size, T(0));
      for (Index m = begin; m < end; m++) {
        for (T* grad : {ga, gb})
          std::fill(grad + ptr[m] * width, grad + ptr[m + 1] * width, T(0));
        for (Index first = edge_ptr[m]; first < edge_ptr[m + 1]; first += TILE)
          tile_backward(g, first, std::min(TILE, edge_ptr[m + 1] - first), packed, back,
                        back + half, ga, gb, g_attr, mine);
      }
    });
    add_parts(parts, part_count, size, outputs * width, g_weight, threads);
    if (inputs)
      add_parts(parts + outputs * width, part_count, size, width * inputs, g_attr_weight, threads);
  }

  void tile_backward(const T* g, Index first, Index count, const T* packed, const T* back_weight,
                     const T* back_attr, T* ga, T* gb, T* g_attr, T* mine) const {
    T* h = scratch<T, 5>(2 * hidden_size() + TILE * panels<T>(std::max(width, inputs)) * COLS<T>);
    T *gh = h + hidden_size(), *columns = gh + hidden_size();
    hidden(first, count, packed, h);
    const View<T> grad{g + first * outputs, outputs, 1};
    product(grad, count, outputs, back_weight, width, gh, width, false);  // g W
    activate_and_differentiate(activation, gh, h, count * width);
    add_transposed_product(grad.data, outputs, h, width, count, columns, mine);
    for (Index e = 0; e < count; e++) {
      const T* row = gh + e * width;
      T* __restrict to_a = ga + source[first + e] * width;
      for (Index f = 0; f < width; f++) to_a[f] += row[f];
      T* __restrict to_b = gb + target[first + e] * width;
      for (Index f = 0; f < width; f++) to_b[f] += row[f];
    }
    if (!inputs) return;
    product(View<T>{gh, width, 1}, count, width, back_attr, inputs, g_attr + first * inputs, inputs,
            false);
    add_transposed_product(gh, width, attr + first * inputs, inputs, count, columns,
                           mine + outputs * width);
  }
};

template <class T>
void edge_mlp(const T* a, const T* b, const T* attr, const T* attr_weight, const T* weight,
              const T* bias, const Index* index, Index width, Index inputs, Index outputs,
              Index activation, Index edges, T* out, Index threads) {
  EdgeMLP<T>{a, b, attr, attr_weight, weight, bias, index, index + edges, width, inputs, outputs,
             static_cast<Activation>(activation)}
      .forward(edges, out, threads);
}

template <class T>
void edge_mlp_grad(const T* g, const T* a, const T* b, const T* attr, const T* attr_weight,
                   const T* weight, const Index* index, Index width, Index inputs, Index outputs,
                   Index activation, Index edges, const Index* ptr, const Index* edge_ptr,
                   Index molecules, T* ga, T* gb, T* g_weight, T* g_attr, T* g_attr_weight,
                   T* parts, Index part_count, Index threads) {
  EdgeMLP<T>{a, b, attr, attr_weight, weight, nullptr, index, index + edges, width, inputs, outputs,
             static_cast<Activation>(activation)}
      .backward(g, ptr, edge_ptr, molecules, ga, gb, g_weight, g_attr, g_attr_weight, parts,
                part_count, threads);
}

}  // namespace msde

EXPORT(edge_mlp)
EXPORT(edge_mlp_grad)
