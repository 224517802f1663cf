// Vectors of float of the widest kind that the target has, by GCC's vector extension: the same source is compiled for
// AVX2 (8 numbers) and AVX-512 (16), each in a namespace of its own.
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(FLAGSHIP_TARGET)
#error "compile with -DFLAGSHIP_TARGET=avx2 or avx512"
#endif

namespace flagship::FLAGSHIP_TARGET {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#else
inline constexpr int kLanes = 8;
#endif

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef float UnalignedVec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

inline Vec Load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
inline void Store(float* to, Vec value) { *reinterpret_cast<UnalignedVec*>(to) = value; }

// The first `count` numbers; what lies behind them is neither read nor written.
inline Vec LoadSome(const float* from, int count) {
  Vec value = {};
  std::memcpy(&value, from, count * sizeof(float));
  return value;
}
inline void StoreSome(float* to, Vec value, int count) { std::memcpy(to, &value, count * sizeof(float)); }

}  // namespace flagship::FLAGSHIP_TARGET
