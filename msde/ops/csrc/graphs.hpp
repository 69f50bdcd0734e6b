// Numbers sorted by key.
#pragma once

#include "gemm.hpp"

namespace msde {

// Sort the numbers 0 ... count - 1 by key, stably: those of key k from ptr[k] to ptr[k + 1].
inline void group(const Index* key, Index count, Index keys, Index* ptr, Index* order) {
  std::fill(ptr, ptr + keys + 1, Index(0));
  for (Index n = 0; n < count; n++) ptr[key[n] + 1]++;
  for (Index k = 0; k < keys; k++) ptr[k + 1] += ptr[k];
  Index* at = scratch<Index, 7>(keys);
  std::copy(ptr, ptr + keys, at);
  for (Index n = 0; n < count; n++) order[at[key[n]]++] = n;
}

}  // namespace msde
