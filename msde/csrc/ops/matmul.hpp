// The product of two matrices by all threads.
#pragma once

#include "maths.hpp"

namespace msde {

// out = parts_0 + parts_1 + ..., `count` of them, each of `size`, one `stride` behind the other.
template <class T>
void add_parts(const T* parts, Index count, Index stride, Index size, T* out, int threads) {
  constexpr Index slice = 512;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index s = 0; s < (size + slice - 1) / slice; s++) {
    const Index first = s * slice, last = std::min(size, first + slice);
    std::copy(parts + first, parts + last, out + first);
    for (Index part = 1; part < count; part++)
      for (Index f = first; f < last; f++) out[f] += parts[part * stride + f];
  }
}

// sum (width) += the sum of `count` rows, `stride` apart. Few are added up at a time, so that rounding
// does not grow with their number.
template <class T>
void add_rows(const T* rows, Index count, Index stride, Index width, T* __restrict sum) {
  constexpr Index few = 32;
  T* __restrict part = scratch<T, 11>(width);
  for (Index first = 0; first < count; first += few) {
    std::fill(part, part + width, T(0));
    for (Index r = first; r < std::min(first + few, count); r++)
      for (Index f = 0; f < width; f++) part[f] += rows[r * stride + f];
    for (Index f = 0; f < width; f++) sum[f] += part[f];
  }
}

// Add the bias, (width), to each of `count` rows.
template <class T>
void add_bias(const T* bias, Index count, Index width, T* __restrict rows) {
  for (Index r = 0; r < count; r++)
    for (Index f = 0; f < width; f++) rows[r * width + f] += bias[f];
}

// c (rows, columns) = activation([c +] a (rows, depth) b (depth, columns) [+ bias]), c row after
// row. `before`, where it is given, gets what the activation is applied to.
template <class T>
struct Matmul {
  View<T> a, b;
  T* c;
  Index rows, depth, columns;
  bool add = false;
  const T* bias = nullptr;
  Activation activation = NONE;
  T* before = nullptr;
  T* row_sums = nullptr;  // gets the sum of each row of a, where rows of a are one number apart

  Index panel_count() const { return panels<T>(columns); }
  Index width(Index panel) const { return std::min<Index>(COLS<T>, columns - panel * COLS<T>); }

  // Copying a panel pays where many rows use it, and must be where its numbers are not in a row.
  bool direct(Index panel) const {
    return rows <= 4 * ROWS && b.column == 1 && width(panel) == COLS<T>;
  }

  // Whether to copy rows of a, too: it pays where the numbers of a row are apart.
  bool apart() const { return a.row == 1 && (a.column > 1 || row_sums); }

  // Copy rows of a: block after block of ROWS of them, (deep, ROWS).
  const T* pack_rows(View<T> part, Index count, Index deep, T* sums) const {
    T* packed = scratch<T, 8>(count * deep);
    const Index whole = count / ROWS * ROWS, rest = count - whole;
    for (Index k = 0; k < deep; k++) {
      const T* column = part.at(0, k);
      for (Index i = 0; i < whole; i += ROWS)
        std::memcpy(packed + i * deep + k * ROWS, column + i, sizeof(T) * ROWS);
      if (rest) std::memcpy(packed + whole * deep + k * rest, column + whole, sizeof(T) * rest);
    }
    if (sums) add_rows(part.data, deep, part.column, count, sums);
    return packed;
  }

  // Multiply the rows first ... first + count by all panels, k by k in steps of DEPTH at most.
  void multiply(Index first, Index count, const T* packed, Index step) const {
    T* sums = row_sums ? row_sums + first : nullptr;
    if (sums) std::fill(sums, sums + count, T(0));
    for (Index k = 0; k < depth; k += step) {
      const Index deep = std::min(step, depth - k);
      const View<T> part{a.at(first, k), a.row, a.column};
      const T* blocks = apart() ? pack_rows(part, count, deep, sums) : nullptr;
      for (Index p = 0; p < panel_count(); p++) {
        const T* panel = direct(p) ? b.at(k, p * COLS<T>) : packed + (p * depth + k) * COLS<T>;
        const Index stride = direct(p) ? b.row : COLS<T>;
        T* to = c + first * columns + p * COLS<T>;
        if (!apart()) {
          stripe(part, count, panel, stride, deep, to, columns, width(p), add || k > 0);
          continue;
        }
        for (Index i = 0; i < count; i += ROWS) {
          const Index tall = std::min<Index>(ROWS, count - i);
          stripe(View<T>{blocks + i * deep, 1, tall}, tall, panel, stride, deep,
                 to + i * columns, columns, width(p), add || k > 0);
        }
      }
    }
    T* to = c + first * columns;
    if (bias) add_bias(bias, count, columns, to);
    if (before) std::copy(to, to + count * columns, before + first * columns);
    activate(activation, to, count * columns);
  }

  // `prepare(first, count)` is called for rows of a before they are used, by who uses them.
  template <class Prepare>
  void run(int threads, Prepare prepare) const {
    if (depth == 0 && !add) std::fill(c, c + rows * columns, T(0));
    T* packed = scratch<T, 0>(panel_count() * depth * COLS<T>);
    const Index stages = (depth + DEPTH - 1) / DEPTH;
    const Index step = stages ? (depth + stages - 1) / stages : 1;
    // Stripes of rows, short enough that the threads finish together. Where all rows of a are deep,
    // each thread has one: so it goes through b once.
    const Index share = (rows + ROWS * threads - 1) / (ROWS * threads);
    const Index tall = ROWS * (apart() && stages > 1 ? share : std::clamp<Index>(share / 8, 1, 8));
    const Index stripes = (rows + tall - 1) / tall;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for collapse(2) schedule(dynamic, 4)
      for (Index p = 0; p < panel_count(); p++)
        for (Index s = 0; s < stages; s++) {
          const Index k = s * step, deep = std::min(step, depth - k);
          if (!direct(p))
            pack_panel(View<T>{b.at(k, 0), b.row, b.column}, deep, columns, p * COLS<T>,
                       packed + (p * depth + k) * COLS<T>);
        }
#pragma omp for schedule(dynamic)
      for (Index s = 0; s < stripes; s++) {
        const Index first = s * tall, count = std::min(tall, rows - first);
        prepare(first, count);
        multiply(first, count, packed, step);
      }
    }
  }

  void run(int threads) const {
    run(threads, [](Index, Index) {});
  }
};

}  // namespace msde
