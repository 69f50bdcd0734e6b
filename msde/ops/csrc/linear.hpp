// Linear maps with an activation, one for each channel, and scalar products of rows.
#pragma once

#include "graphs.hpp"
#include "matmul.hpp"

namespace msde {

// y_c (rows, outputs) = activation(x_c (rows, inputs) W_c^T + bias_c) for each channel c. Where x
// is shared, all channels have the same one.
template <class T>
struct Linear {
  const T *x, *weight, *bias;  // bias (channels, outputs) or null
  Index channels, shared, rows, inputs, outputs;
  Activation activation;

  const T* input(Index c) const { return shared ? x : x + c * rows * inputs; }
  View<T> weights(Index c) const { return {weight + c * outputs * inputs, inputs, 1}; }
  View<T> transposed(Index c) const { return {weights(c).data, 1, inputs}; }

  // `before`, (channels, rows, outputs) or null, gets the activation's input; `plus`, of the same
  // shape or null, is added before.
  void forward(T* y, T* before, const T* plus, int threads) const {
    for (Index c = 0; c < channels; c++) {
      const Index at = c * rows * outputs;
      Matmul<T>{{input(c), inputs, 1}, transposed(c), y + at, rows, inputs, outputs, false,
                bias ? bias + c * outputs : nullptr, activation, before ? before + at : nullptr,
                plus ? plus + at : nullptr}
          .run(threads);
    }
  }

  // Gradients from g; see `differentiate` for h. gx is null where it is not needed. Each part of
  // the rows has its own gradients of weights and biases in `parts`, (part_count, both).
  void backward_small(const T* g, const T* h, T* gx, T* parts, Index part_count, T* g_weight,
                      T* g_bias, int threads) const {
    const Index size = outputs * inputs, both = channels * (size + outputs);
    const Index packed_size = outputs * panels<T>(inputs) * COLS<T>;
    T* packed = scratch<T, 4>(channels * packed_size);
    for (Index c = 0; c < channels; c++)
      pack(weights(c), outputs, inputs, packed + c * packed_size);
    share_parts(rows, part_count, threads, [&](Index part, Index begin, Index end) {
      T *mine = parts + part * both, *of_bias = mine + channels * size;
      std::fill(mine, mine + both, T(0));
      T* gz = scratch<T, 5>(TILE * outputs + TILE * panels<T>(inputs) * COLS<T>);
      T* columns = gz + TILE * outputs;
      for (Index first = begin; first < end; first += TILE)
        for (Index c = 0; c < channels; c++) {
          const Index count = std::min(TILE, end - first), at = (c * rows + first) * outputs;
          differentiate(activation, g + at, h ? h + at : g, gz, count * outputs);
          add_rows(gz, count, outputs, outputs, of_bias + c * outputs);
          if (gx)
            product(View<T>{gz, outputs, 1}, count, outputs, packed + c * packed_size, inputs,
                    (shared ? gx : gx + c * rows * inputs) + first * inputs, inputs,
                    shared && c > 0);
          add_transposed_product(gz, outputs, input(c) + first * inputs, inputs, count, columns,
                                 mine + c * size);
        }
    });
    add_parts(parts, part_count, both, channels * size, g_weight, threads);
    add_parts(parts + channels * size, part_count, both, channels * outputs, g_bias, threads);
  }

  // The same for many weights: `gz`, (rows, outputs), is needed where there is an activation, and
  // `parts` is (part_count, weights and bias of a channel).
  void backward_large(const T* g, const T* h, T* gx, T* gz, T* parts, Index part_count,
                      T* g_weight, T* g_bias, int threads) const {
    for (Index c = 0; c < channels; c++) {
      const Index at = c * rows * outputs;
      const T* of_z = gz ? gz : g + at;
      auto differentiated = [&](Index first, Index count) {
        const Index from = first * outputs;
        if (gz)
          differentiate(activation, g + at + from, h + at + from, gz + from, count * outputs);
      };
      if (gx) {
        const Matmul<T> of_x{{of_z, outputs, 1}, weights(c), shared ? gx : gx + c * rows * inputs,
                             rows, outputs, inputs, shared && c > 0};
        of_x.run(threads, differentiated);
      } else {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (Index r = 0; r < rows; r++) differentiated(r, 1);
      }
      TransposedMatmul<T>{of_z, input(c), rows, outputs, inputs, parts, part_count}.run(
          g_weight + c * outputs * inputs, g_bias + c * outputs, threads);
    }
  }
};

template <class T>
void linear(const T* x, const T* weight, const T* bias, Index channels, Index shared, Index rows,
            Index inputs, Index outputs, Index activation, T* y, T* before, const T* plus,
            Index threads) {
  Linear<T>{x, weight, bias, channels, shared, rows, inputs, outputs,
            static_cast<Activation>(activation)}
      .forward(y, before, plus, threads);
}

template <class T>
void linear_grad(const T* g, const T* h, const T* x, const T* weight, Index channels, Index shared,
                 Index rows, Index inputs, Index outputs, Index activation, Index small, T* gx,
                 T* gz, T* parts, Index part_count, T* g_weight, T* g_bias, Index threads) {
  const Linear<T> layer{x, weight, nullptr, channels, shared, rows, inputs, outputs,
                        static_cast<Activation>(activation)};
  if (small)
    layer.backward_small(g, h, gx, parts, part_count, g_weight, g_bias, threads);
  else
    layer.backward_large(g, h, gx, gz, parts, part_count, g_weight, g_bias, threads);
}

// out_rk = <x_r, y_s> with s = at[r, k].
template <class T>
struct RowDot {
  const T *x, *y;   // (rows, width) and (others, width)
  const Index* at;  // (rows, count)
  Index rows, others, width, count;

  void forward(T* out, int threads) const {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (Index r = 0; r < rows; r++)
      for (Index k = 0; k < count; k++)
        out[r * count + k] = dot(x + r * width, y + at[r * count + k] * width, width);
  }

  // A row of y may be met more than once: its gradient is summed over where it is met, in order.
  void backward(const T* g, T* gx, T* gy, int threads) const {
    Index *ptr = scratch<Index, 12>(others + 1 + rows * count), *met = ptr + others + 1;
    group(at, rows * count, others, ptr, met);
    share_each(rows, threads, [&](Index r) {
      T* to = gx + r * width;
      std::fill(to, to + width, T(0));
      for (Index k = r * count; k < (r + 1) * count; k++) add_multiple(g[k], y + at[k] * width, to);
    });
    share_each(others, threads, [&](Index s) {
      T* to = gy + s * width;
      std::fill(to, to + width, T(0));
      for (Index n = ptr[s]; n < ptr[s + 1]; n++)
        add_multiple(g[met[n]], x + met[n] / count * width, to);
    });
  }

  void add_multiple(T factor, const T* from, T* __restrict to) const {
    for (Index f = 0; f < width; f++) to[f] += factor * from[f];
  }
};

template <class T>
void row_dot(const T* x, const T* y, const Index* at, Index rows, Index others, Index width,
             Index count, T* out, Index threads) {
  RowDot<T>{x, y, at, rows, others, width, count}.forward(out, threads);
}

template <class T>
void row_dot_grad(const T* g, const T* x, const T* y, const Index* at, Index rows, Index others,
                  Index width, Index count, T* gx, T* gy, Index threads) {
  RowDot<T>{x, y, at, rows, others, width, count}.backward(g, gx, gy, threads);
}

}  // namespace msde

EXPORT(linear)
EXPORT(linear_grad)
EXPORT(row_dot)
EXPORT(row_dot_grad)
