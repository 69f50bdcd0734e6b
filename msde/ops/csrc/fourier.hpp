// A linear map of Fourier features, which are made in cache and never kept.
#pragma once

#include "gemm.hpp"
#include "maths.hpp"
#include "threads.hpp"

namespace msde {

// y (rows, outputs) = W F + bias with F = [sin 2 pi v_0 w, cos 2 pi v_0 w, sin 2 pi v_1 w, ...]
// for each row's scalars v, (rows, scalars), and the frequencies w.
template <class T>
struct FourierLinear {
  const T *v, *frequency, *weight;
  Index rows, scalars, frequencies, outputs;

  Index inputs() const { return 2 * scalars * frequencies; }

  void features(Index first, Index count, T* out) const {
    for (Index r = 0; r < count; r++)
      for (Index s = 0; s < scalars; s++, out += 2 * frequencies) {
        const T value = v[(first + r) * scalars + s];
        T *__restrict sines = out, *__restrict cosines = out + frequencies;
        for (Index f = 0; f < frequencies; f++) {
          T sine, cosine;
          sine_and_cosine_of_turns(value * frequency[f], sine, cosine);
          sines[f] = sine;
          cosines[f] = cosine;
        }
      }
  }

  void forward(const T* bias, T* y, int threads) const {
    T* packed = scratch<T, 4>(inputs() * panels<T>(outputs) * COLS<T>);
    pack(View<T>{weight, 1, inputs()}, inputs(), outputs, packed);
    share_rows(rows, TILE, threads, [&](Index first, Index count) {
      T *made = scratch<T, 5>(TILE * inputs()), *to = y + first * outputs;
      features(first, count, made);
      product(View<T>{made, inputs(), 1}, count, inputs(), packed, outputs, to, outputs, false);
      add_bias(bias, count, outputs, to);
    });
  }

  // The gradients of W, (outputs, inputs), and bias from g; each part of the rows has its own, one
  // after the other, in `parts`.
  void backward(const T* g, T* parts, Index part_count, T* g_weight, T* g_bias,
                int threads) const {
    const Index size = outputs * inputs(), both = size + outputs;
    share_parts(rows, part_count, threads, [&](Index part, Index begin, Index end) {
      T *mine = parts + part * both, *made = scratch<T, 5>(
          TILE * inputs() + TILE * panels<T>(inputs()) * COLS<T>);
      T* columns = made + TILE * inputs();
      std::fill(mine, mine + both, T(0));
      for (Index first = begin; first < end; first += TILE) {
        const Index count = std::min(TILE, end - first);
        features(first, count, made);
        add_transposed_product(g + first * outputs, outputs, made, inputs(), count, columns, mine);
        add_rows(g + first * outputs, count, outputs, outputs, mine + size);
      }
    });
    add_parts(parts, part_count, both, size, g_weight, threads);
    add_parts(parts + size, part_count, both, outputs, g_bias, threads);
  }
};

template <class T>
void fourier_linear(const T* v, const T* frequency, const T* weight, Index rows, Index scalars,
                    Index frequencies, Index outputs, const T* bias, T* y, Index threads) {
  FourierLinear<T>{v, frequency, weight, rows, scalars, frequencies, outputs}.forward(bias, y,
                                                                                      threads);
}

template <class T>
void fourier_linear_grad(const T* g, const T* v, const T* frequency, Index rows, Index scalars,
                         Index frequencies, Index outputs, T* parts, Index part_count, T* g_weight,
                         T* g_bias, Index threads) {
  FourierLinear<T>{v, frequency, nullptr, rows, scalars, frequencies, outputs}.backward(
      g, parts, part_count, g_weight, g_bias, threads);
}

}  // namespace msde

EXPORT(fourier_linear)
EXPORT(fourier_linear_grad)
