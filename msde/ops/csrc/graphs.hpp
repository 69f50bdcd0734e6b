// How the rows of a batch belong together: pairs, directed edges, groups of rows.
#pragma once

#include "base.hpp"

namespace msde {

// The pairs of a batch: atoms of molecule m from ptr[m] on, its pairs from pair_ptr[m] on.
struct Pairs {
  const Index *i, *j, *ptr, *pair_ptr;
  Index molecules;

  // `index` is (2, pairs).
  Pairs(const Index* index, const Index* ptr, const Index* pair_ptr, Index molecules)
      : i(index), j(index + pair_ptr[molecules]), ptr(ptr), pair_ptr(pair_ptr),
        molecules(molecules) {}
};

// Sort the numbers 0 ... count - 1 by key, stably: those of key k from ptr[k] to ptr[k + 1].
inline void group(const Index* key, Index count, Index keys, Index* ptr, Index* order,
                  Index = 1) {
  std::fill(ptr, ptr + keys + 1, Index(0));
  for (Index n = 0; n < count; n++) ptr[key[n] + 1]++;
  for (Index k = 0; k < keys; k++) ptr[k + 1] += ptr[k];
  Index* at = scratch<Index, 7>(keys);
  std::copy(ptr, ptr + keys, at);
  for (Index n = 0; n < count; n++) order[at[key[n]]++] = n;
}

}  // namespace msde

EXPORT_AS(group, group)
