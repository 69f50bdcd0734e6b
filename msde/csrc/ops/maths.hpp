// Elementary functions that compilers can vectorise: float to about one unit in the last place,
// double by the standard library.
#pragma once

#include <cmath>
#include <type_traits>

#include "gemm.hpp"

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

// Near zero an odd polynomial, which keeps the relative error small (Cephes, tanhf).
inline float hyperbolic_tangent(float x) {
  const float size = std::fabs(x), z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float near = x + x * z * p;
  const float far = std::copysign(1.0f - 2.0f / (exponential(2.0f * size) + 1.0f), x);
  return size < 0.625f ? near : far;
}
inline double hyperbolic_tangent(double x) { return std::tanh(x); }

// What is not a number stays so: where it would become zero no guard could see it.
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

}  // namespace msde
