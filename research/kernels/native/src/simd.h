// Vectors of float of the widest kind that the target has, by GCC's vector extension: the same source is compiled for
// AVX2 (8 numbers) and AVX-512 (16), each in a namespace of its own.
#pragma once

#include <immintrin.h>

#include <cstdint>

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
#if defined(__AVX512F__)
inline Vec LoadSome(const float* from, int64_t count) { return (Vec)_mm512_maskz_loadu_ps((1u << count) - 1, from); }
inline void StoreSome(float* to, Vec value, int64_t count) {
  _mm512_mask_storeu_ps(to, (1u << count) - 1, (__m512)value);
}
#else
inline __m256i Mask(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec LoadSome(const float* from, int64_t count) { return (Vec)_mm256_maskload_ps(from, Mask(count)); }
inline void StoreSome(float* to, Vec value, int64_t count) { _mm256_maskstore_ps(to, Mask(count), (__m256)value); }
#endif

}  // namespace flagship::FLAGSHIP_TARGET
