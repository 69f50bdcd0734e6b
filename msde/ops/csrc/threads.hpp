// How the threads share a loop.
#pragma once

#include <atomic>
#include <vector>

#include "base.hpp"

namespace msde {

// Call work(n) for n = 0 ... count - 1. Each thread begins with a range of its own: its cache still
// holds the results of the previous loop for that range. Then it helps the others, because a core
// may be slowed down at times.
template <class Work>
void share(Index count, int threads, Work work) {
  if (threads <= 1) {
    for (Index n = 0; n < count; n++) work(n);
    return;
  }
  struct alignas(64) Range {
    std::atomic<Index> next;
    Index end;
  };
  std::vector<Range> ranges(threads);
  for (int t = 0; t < threads; t++) {
    ranges[t].next = t * count / threads;
    ranges[t].end = (t + 1) * count / threads;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int mine = 0; mine < threads; mine++)
    for (int turn = 0; turn < threads; turn++) {
      Range& range = ranges[(mine + turn) % threads];
      for (Index n; (n = range.next.fetch_add(1)) < range.end;) work(n);
    }
}

// Call work(first, number) for pieces of `piece` rows.
template <class Work>
void share_rows(Index rows, Index piece, int threads, Work work) {
  share((rows + piece - 1) / piece, threads,
        [&](Index n) { work(n * piece, std::min(piece, rows - n * piece)); });
}

// Call work(r) for each of many rows that take little time.
template <class Work>
void share_each(Index rows, int threads, Work work) {
  share_rows(rows, 16, threads, [&](Index first, Index count) {
    for (Index r = first; r < first + count; r++) work(r);
  });
}

// Call work(part, first, last) for parts of the rows of which each makes sums of its own.
template <class Work>
void share_parts(Index rows, Index parts, int threads, Work work) {
  share(parts, threads,
        [&](Index part) { work(part, part * rows / parts, (part + 1) * rows / parts); });
}

// out = parts_0 + parts_1 + ..., `count` of them, each of `size`, `stride` apart.
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

}  // namespace msde
