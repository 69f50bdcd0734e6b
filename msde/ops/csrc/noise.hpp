// Random numbers by Philox4x32-10; see msde/philox.py.
#pragma once

#include "maths.hpp"

namespace msde {

// ln(x) of a normal positive number: x = m 2^e with m around one,
// ln(m) = 2 artanh((m - 1) / (m + 1)).
inline float logarithm(float x) {
  std::int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const std::int32_t e = (bits - 0x3f3504f3) >> 23;  // 0x3f3504f3: the root of 1/2
  bits -= e * (1 << 23);
  float m;
  std::memcpy(&m, &bits, sizeof m);
  const float s = (m - 1.0f) / (m + 1.0f), z = s * s;
  float p = 1.0f / 9;
  p = p * z + 1.0f / 7;
  p = p * z + 1.0f / 5;
  p = p * z + 1.0f / 3;
  const float n = static_cast<float>(e);
  return n * 0.693359375f + (n * -2.12194440e-4f + 2.0f * (s + s * z * p));
}

using Word = std::uint32_t;

struct PhiloxKey {
  Word low, high;

  // Encrypt `size` counters, each of four words, in their place.
  void encrypt(Word* __restrict c0, Word* __restrict c1, Word* __restrict c2, Word* __restrict c3,
               Index size) const {
    Word k0 = low, k1 = high;
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
      for (Index n = 0; n < size; n++) {
        const std::uint64_t p0 = std::uint64_t(c0[n]) * 0xD2511F53u;
        const std::uint64_t p1 = std::uint64_t(c2[n]) * 0xCD9E8D57u;
        c0[n] = static_cast<Word>(p1 >> 32) ^ c1[n] ^ k0;
        c1[n] = static_cast<Word>(p1);
        c2[n] = static_cast<Word>(p0 >> 32) ^ c3[n] ^ k1;
        c3[n] = static_cast<Word>(p0);
      }
  }
};

// Standard normals by Box and Muller.
struct Normals {
  const Index *uid, *item;  // of each row
  Index rows, count;        // numbers of a row
  Word stream;
  PhiloxKey key;

  static constexpr Index CHUNK = 1024;  // blocks of four numbers made together

  Index blocks() const { return (count + 3) / 4; }

  void run(float* out, int threads) const {
    const Index together = std::max<Index>(1, CHUNK / std::max<Index>(1, blocks()));
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (Index first = 0; first < rows; first += together)
      rows_from(first, std::min(together, rows - first), out + first * count);
  }

  void rows_from(Index first, Index number, float* out) const {
    const Index size = number * blocks();
    Word* words = scratch<Word, 9>(4 * size);
    float* made = scratch<float, 10>(4 * size);
    Word *c0 = words, *c1 = c0 + size, *c2 = c1 + size, *c3 = c2 + size;
    for (Index r = 0; r < number; r++)
      for (Index b = 0; b < blocks(); b++) {
        const Index at = r * blocks() + b;
        c0[at] = static_cast<Word>(uid[first + r]);
        c1[at] = static_cast<Word>(uid[first + r] >> 32);
        c2[at] = static_cast<Word>(item[first + r]);
        c3[at] = static_cast<Word>(b << 8) | stream;
      }
    key.encrypt(c0, c1, c2, c3, size);
    box_muller(c0, c1, made, made + size, size);
    box_muller(c2, c3, made + 2 * size, made + 3 * size, size);
    for (Index r = 0; r < number; r++)
      for (Index n = 0; n < count; n++)
        out[r * count + n] = made[n % 4 * size + r * blocks() + n / 4];
  }

  static void box_muller(const Word* one, const Word* other, float* __restrict cosines,
                         float* __restrict sines, Index size) {
    for (Index n = 0; n < size; n++) {
      const float u = static_cast<float>(one[n]) * 0x1p-32f + 0x1p-33f;
      const float radius = std::sqrt(-2.0f * logarithm(u));
      float sine, cosine;
      sine_and_cosine_of_turns(static_cast<float>(other[n]) * 0x1p-32f, sine, cosine);
      cosines[n] = radius * cosine;
      sines[n] = radius * sine;
    }
  }
};

inline void normals(const Index* uid, const Index* item, Index rows, Index count, Index stream,
                    Index key_low, Index key_high, const Index* high, float* out, Index threads) {
  const PhiloxKey key{Word(key_low), Word(high ? *high : key_high)};
  Normals{uid, item, rows, count, Word(stream), key}.run(out, threads);
}

// out = the factors of dropout: 0 where a word is below `threshold`, else `scale`.
inline void dropout_factors(Index size, Index stream, Index key_low, Index key_high,
                            Index threshold, double scale, float* out, Index threads) {
  const PhiloxKey key{Word(key_low), Word(key_high)};
  const float factor = static_cast<float>(scale);
  constexpr Index chunk = 1024;  // counters
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (Index first = 0; first < (size + 3) / 4; first += chunk) {
    Word* words = scratch<Word, 9>(4 * chunk);
    for (Index n = 0; n < chunk; n++) {
      const std::uint64_t counter = first + n;
      words[n] = static_cast<Word>(counter);
      words[chunk + n] = static_cast<Word>(counter >> 32);
      words[2 * chunk + n] = 0;
      words[3 * chunk + n] = static_cast<Word>(stream);
    }
    key.encrypt(words, words + chunk, words + 2 * chunk, words + 3 * chunk, chunk);
    const Index last = std::min(4 * (first + chunk), size);
    for (Index n = 4 * first; n < last; n++)
      out[n] = words[n % 4 * chunk + n / 4 - first] < Word(threshold) ? 0.0f : factor;
  }
}

}  // namespace msde

EXPORT_AS(normals_f32, normals)
EXPORT_AS(dropout_factors_f32, dropout_factors)
