// Elementary functions that compilers can vectorise: float to about one unit in the last place,
// double by the standard library.
#pragma once

#include <cmath>
#include <type_traits>

#include "base.hpp"

namespace msde {

// e^x = 2^n e^r with |r| <= ln(2) / 2 and a polynomial for e^r (Cephes, expf).
// Beyond +-87 the result stays that of +-87.
inline float exponential(float x) {
  constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x < -87.0f ? -87.0f : x;
  x = x > 87.0f ? 87.0f : x;
  const float n = (x * 1.44269504f + round) - round;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const std::int32_t bits = (static_cast<std::int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}
inline double exponential(double x) { return std::exp(x); }

// A rational function, fitted to tanh on [-9, 9] with weighted least squares: of the true value it
// is 2.1e-8 off at most, and exact at zero. Beyond, tanh is 1 in float.
inline float hyperbolic_tangent(float x) {
  x = x < -9.0f ? -9.0f : x;
  x = x > 9.0f ? 9.0f : x;
  const float z = x * x;
  float p = 1.3419747e-8f, q = 7.804697e-7f;
  p = p * z + 2.0661202e-5f;
  q = q * z + 3.2910323e-4f;
  p = p * z + 3.4989922e-3f;
  q = q * z + 2.5890192e-2f;
  p = p * z + 1.3383977e-1f;
  q = q * z + 4.6717298e-1f;
  return x * (p * z + 1.0f) / (q * z + 1.0f);
}
inline double hyperbolic_tangent(double x) { return std::tanh(x); }

// ln(1 + t) for t in [0, 1]: 2 artanh(t / (2 + t)), by its series.
inline float log1p(float t) {
  const float s = t / (2.0f + t), z = s * s;
  float p = 1.0f / 15;
  p = p * z + 1.0f / 13;
  p = p * z + 1.0f / 11;
  p = p * z + 1.0f / 9;
  p = p * z + 1.0f / 7;
  p = p * z + 1.0f / 5;
  p = p * z + 1.0f / 3;
  return 2.0f * (s + s * z * p);
}
inline double log1p(double t) { return std::log1p(t); }

// sin and cos of 2 pi u. The nearest quarter of a turn is taken off first, which is exact, and
// polynomials do for the rest (Cephes, sinf and cosf).
inline void sine_and_cosine_of_turns(float u, float& sine, float& cosine) {
  const float part = u - std::rint(u), quarter = std::rint(4.0f * part);  // -2 ... 2
  const float x = (part - 0.25f * quarter) * 6.28318531f, z = x * x;
  const float s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * x + x;
  const float c =
      ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z -
      0.5f * z + 1.0f;
  const bool odd = quarter == 1.0f || quarter == -1.0f;
  const float a = odd ? c : s, b = odd ? s : c;
  sine = quarter == 2.0f || quarter == -1.0f || quarter == -2.0f ? -a : a;
  cosine = quarter == 1.0f || quarter == 2.0f || quarter == -2.0f ? -b : b;
}
inline void sine_and_cosine_of_turns(double u, double& sine, double& cosine) {
  const double x = (u - std::rint(u)) * 6.283185307179586477;
  sine = std::sin(x);
  cosine = std::cos(x);
}

// NaN stays NaN: if it became zero, no check of the loss could find it.
template <class T>
T relu(T x) {
  return x < 0 ? T(0) : x;
}
// The gradient of x from that of relu(x), as torch has it.
template <class T>
T relu_grad(T g, T x) {
  return x <= 0 ? T(0) : g;
}

template <class T>
T sigmoid(T x) {
  return T(1) / (T(1) + exponential(-x));
}

// The activations of layers. SOFTPLUS is shifted to be zero at zero.
enum Activation { NONE, RELU, SILU, SOFTPLUS, TANH, ELU };

template <class T>
void activate(Activation activation, T* __restrict h, Index size) {
  constexpr T log_2 = T(0.693147180559945309);
  switch (activation) {
    case NONE:
      break;
    case RELU:
      for (Index f = 0; f < size; f++) h[f] = relu(h[f]);
      break;
    case SILU:
      for (Index f = 0; f < size; f++) h[f] *= sigmoid(h[f]);
      break;
    case SOFTPLUS:
      for (Index f = 0; f < size; f++) {
        const T tail = log1p(exponential(-std::fabs(h[f])));
        h[f] = (h[f] < 0 ? tail : h[f] + tail) - log_2;
      }
      break;
    case TANH:
      for (Index f = 0; f < size; f++) h[f] = hyperbolic_tangent(h[f]);
      break;
    case ELU:
      for (Index f = 0; f < size; f++) h[f] = h[f] > 0 ? h[f] : exponential(h[f]) - 1;
  }
}

// out = g times the derivative where the activation's result is h; for SILU, where its input is.
template <class T>
void differentiate(Activation activation, const T* g, const T* h, T* out, Index size) {
  switch (activation) {
    case NONE:
      for (Index f = 0; f < size; f++) out[f] = g[f];
      break;
    case RELU:
      for (Index f = 0; f < size; f++) out[f] = relu_grad(g[f], h[f]);
      break;
    case SILU:
      for (Index f = 0; f < size; f++) {
        const T s = sigmoid(h[f]);
        out[f] = g[f] * s * (1 + h[f] * (1 - s));
      }
      break;
    case SOFTPLUS:
      for (Index f = 0; f < size; f++) out[f] = g[f] * (1 - T(0.5) * exponential(-h[f]));
      break;
    case TANH:
      for (Index f = 0; f < size; f++) out[f] = g[f] * (1 - h[f] * h[f]);
      break;
    case ELU:
      for (Index f = 0; f < size; f++) out[f] = h[f] > 0 ? g[f] : g[f] * (h[f] + 1);
  }
}

// Multiply g by the derivative at h, and put the activation's result in the place of h.
template <class T>
void activate_and_differentiate(Activation activation, T* __restrict g, T* __restrict h,
                                Index size) {
  if (activation != SILU) {
    activate(activation, h, size);
    differentiate(activation, g, h, g, size);
    return;
  }
  for (Index f = 0; f < size; f++) {
    const T s = sigmoid(h[f]);
    g[f] *= s * (1 + h[f] * (1 - s));
    h[f] *= s;
  }
}

}  // namespace msde
