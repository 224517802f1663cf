// Products of two matrices whose rows lie wherever they lie, in float32: what every convolution here is made of.
//
// A tile of kRows × kColumns sums stays in registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "pool.h"
#include "simd.h"

namespace flagship::FLAGSHIP_TARGET {

constexpr int kVectors = 2;                  // of a tile's columns
constexpr int kColumns = kVectors * kLanes;  // of a tile
#if defined(__AVX512F__)
constexpr int kRows = 8;           // of a tile
constexpr int kNumbersAtOnce = 4;  // of a row, for one reading of its pointer: as many columns as registers are left
constexpr int kNumbers = 8;        // of a tile of outer products; divides kLanes
#else
constexpr int kRows = 6;
constexpr int kNumbersAtOnce = 1;
constexpr int kNumbers = 4;
#endif
constexpr int64_t kDepth = 256;  // numbers of a row that are multiplied before the next tile: their columns stay in L1

inline int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

// acc[m][n] += Σ over positions and numbers of rows[position][m][number] · columns[position][number][n], but for
// positions whose first row is null.
template <int N>
inline void Multiply(const float* const* rows, int64_t positions, int64_t from, int64_t depth, const float* columns,
                     int64_t step, Vec (&acc)[kRows][N]) {
  for (int64_t position = 0; position < positions; ++position, rows += kRows, columns += step) {
    if (rows[0] == nullptr) continue;
    const float* b = columns + from * N * kLanes;
    const auto multiply = [&]<int kSteps>(int64_t c, std::integral_constant<int, kSteps>) {
      Vec column[kSteps][N];
#pragma GCC unroll 4
      for (int u = 0; u < kSteps; ++u) {
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) column[u][n] = Load(b + (u * N + n) * kLanes);
      }
      b += kSteps * N * kLanes;
      // More rows than there are registers for pointers: each is read again, and not kept in a vector's part, whose
      // way back would take a place of the multiplications.
      if constexpr (kNumbersAtOnce > 1) asm volatile("" : "+r"(rows));
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        const float* a = rows[m] + c;
#pragma GCC unroll 4
        for (int u = 0; u < kSteps; ++u) {
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) acc[m][n] += a[u] * column[u][n];
        }
      }
    };
    int64_t c = from;
    for (; c + kNumbersAtOnce <= from + depth; c += kNumbersAtOnce) {
      multiply(c, std::integral_constant<int, kNumbersAtOnce>());
    }
    for (; c < from + depth; ++c) multiply(c, std::integral_constant<int, 1>());
  }
}

// A product of gathered rows with packed columns.
struct Product {
  int64_t positions, depth;  // a row is `positions` pieces of `depth` numbers
  int64_t outputs;
  const float* packed;  // (blocks, positions, depth, kColumns), zeros behind the last output

  int64_t blocks() const { return Ceil(outputs, kColumns); }

  // One block of columns for some tiles: rows (tiles, positions, kRows) and where the outputs of each row begin.
  void Run(const float* const* rows, float* const* out, int64_t tiles, int64_t block) const {
    const float* columns = packed + block * positions * depth * kColumns;
    const int64_t first = block * kColumns, count = std::min<int64_t>(kColumns, outputs - first);
    const int64_t positions_at_once = std::max<int64_t>(1, kDepth / depth);
    const int64_t numbers_at_once = std::min(depth, kDepth);
    bool started = false;
    for (int64_t position = 0; position < positions; position += positions_at_once) {
      const int64_t some = std::min(positions_at_once, positions - position);
      for (int64_t from = 0; from < depth; from += numbers_at_once) {
        const int64_t numbers = std::min(numbers_at_once, depth - from);
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const float* const* a = rows + (tile * positions + position) * kRows;
          const float* b = columns + position * depth * kColumns;
          float* const* to = out + tile * kRows;
          // What is written next is fetched while it is computed: rows of results are too far apart to be foreseen.
          for (int m = 0; m < kRows; ++m) {
            for (int n = 0; n < kVectors; ++n) __builtin_prefetch(to[m] + first + n * kLanes, 1);
          }
          Vec acc[kRows][kVectors] = {};
          if (started) {
            for (int m = 0; m < kRows; ++m) {
              for (int n = 0; n < kVectors; ++n) {
                const int64_t have = count - n * kLanes;
                acc[m][n] = have >= kLanes ? Load(to[m] + first + n * kLanes)
                            : have > 0     ? LoadSome(to[m] + first + n * kLanes, have)
                                           : Vec{};
              }
            }
          }
          Multiply<kVectors>(a, some, from, numbers, b, depth * kColumns, acc);
          for (int m = 0; m < kRows; ++m) {
            for (int n = 0; n < kVectors; ++n) {
              const int64_t have = count - n * kLanes;
              if (have >= kLanes) {
                Store(to[m] + first + n * kLanes, acc[m][n]);
              } else if (have > 0) {
                StoreSome(to[m] + first + n * kLanes, acc[m][n], have);
              }
            }
          }
        }
        started = true;
      }
    }
  }
};

// The packed columns of kernel (positions, depth, outputs), of which some positions are taken; with `turned` it is
// (positions, outputs, depth). Made in pieces, each by one thread.
struct Packing {
  const float* kernel;
  const std::vector<int64_t>& positions;
  int64_t depth, outputs;
  bool turned;

  int64_t pieces() const { return Ceil(outputs, kColumns) * static_cast<int64_t>(positions.size()); }
  int64_t size() const { return pieces() * depth * kColumns; }

  void Run(int64_t piece, float* packed) const {
    const int64_t count = positions.size(), block = piece / count, position = piece % count, first = block * kColumns;
    const int64_t columns = std::min<int64_t>(kColumns, outputs - first);
    const float* from = kernel + positions[position] * depth * outputs;
    float* row = packed + (block * count + position) * depth * kColumns;
    if (!turned) {
      for (int64_t c = 0; c < depth; ++c, row += kColumns) {
        std::copy_n(from + c * outputs + first, columns, row);
        std::fill(row + columns, row + kColumns, 0.0f);
      }
    } else {
      for (int64_t c = 0; c < depth; ++c) std::fill(row + c * kColumns + columns, row + (c + 1) * kColumns, 0.0f);
      constexpr int64_t kPiece = 16;  // both sides of a piece stay in the cache
      for (int64_t start = 0; start < depth; start += kPiece) {
        const int64_t end = std::min(depth, start + kPiece);
        for (int64_t o = 0; o < columns; ++o) {
          const float* line = from + (first + o) * depth;
          for (int64_t c = start; c < end; ++c) row[c * kColumns + o] = line[c];
        }
      }
    }
  }
};

inline Buffer Pack(const Packing& packing, const Pool& pool) {
  Buffer packed = Allocate(packing.size());
  pool.Run(packing.pieces(), [&](int64_t piece) { packing.Run(piece, packed.get()); });
  return packed;
}

// How far apart the packed pieces of `count` rows lie: a line further than they need, since pieces that begin a
// multiple of 4 KB from each other would have the same few places in the cache.
inline int64_t Apart(int64_t count, int64_t piece) { return count * piece + kLanes; }

// Rows of numbers, or parts of them, one beside the other: to (width / kLanes, count, kLanes), pieces Apart(count,
// kLanes) apart. The last may be partial, and what is then behind it is not written.
inline void PackNumbers(const float* const* rows, int64_t count, int64_t width, float* to) {
  for (int64_t c = 0; c < width; c += kLanes, to += Apart(count, kLanes)) {
    if (c + kLanes <= width) {
      for (int64_t n = 0; n < count; ++n) Store(to + n * kLanes, Load(rows[n] + c));
    } else {
      for (int64_t n = 0; n < count; ++n) StoreSome(to + n * kLanes, LoadSome(rows[n] + c, width - c), width - c);
    }
  }
}

// The same with kColumns numbers for kLanes, and zeros behind the last.
inline void PackVectors(const float* const* rows, int64_t count, int64_t width, float* to) {
  for (int64_t c = 0; c < width; c += kColumns, to += Apart(count, kColumns)) {
    const int64_t have = std::min<int64_t>(kColumns, width - c);
    for (int64_t n = 0; n < count; ++n) {
      float* row = to + n * kColumns;
      if (have == kColumns) {
        for (int v = 0; v < kColumns; v += kLanes) Store(row + v, Load(rows[n] + c + v));
      } else {
        std::copy_n(rows[n] + c, have, row);
        std::fill(row + have, row + kColumns, 0.0f);
      }
    }
  }
}

// Where sums of outer products go, and whether there are sums already, to add to.
struct Sums {
  float* to;
  int64_t apart;          // numbers from the beginning of a row to that of the next
  int64_t rows, columns;  // what lies behind them is neither read nor written; no more than kColumns
  bool started;
};

// The first kNumbers rows of sums += Σ over rows of numbers(row) ⊗ vectors[row].
template <typename Numbers>
inline void SumTile(const Numbers& numbers, const float* vectors, int64_t count, const Sums& sums) {
  Vec acc[kNumbers][kVectors] = {};
  const bool whole = sums.rows >= kNumbers && sums.columns >= kColumns;
  if (sums.started) {
#pragma GCC unroll 16
    for (int m = 0; m < kNumbers; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const float* from = sums.to + m * sums.apart + v * kLanes;
        const int64_t have = m < sums.rows ? sums.columns - v * kLanes : 0;
        acc[m][v] = whole || have >= kLanes ? Load(from) : have > 0 ? LoadSome(from, have) : Vec{};
      }
    }
  }
  for (int64_t n = 0; n < count; ++n, vectors += kColumns) {
    const float* a = numbers(n);
    Vec column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) column[v] = Load(vectors + v * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < kNumbers; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[m][v] += a[m] * column[v];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kNumbers; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* to = sums.to + m * sums.apart + v * kLanes;
      const int64_t have = m < sums.rows ? sums.columns - v * kLanes : 0;
      if (whole || have >= kLanes) {
        Store(to, acc[m][v]);
      } else if (have > 0) {
        StoreSome(to, acc[m][v], have);
      }
    }
  }
}

// sums += Σ over rows of numbers[row] ⊗ vectors[row], packed as above.
inline void SumProducts(const float* numbers, const float* vectors, int64_t count, Sums sums) {
  for (int64_t row = 0; sums.rows > 0; row += kNumbers, sums.rows -= kNumbers, sums.to += kNumbers * sums.apart) {
    const float* a = numbers + row / kLanes * Apart(count, kLanes) + row % kLanes;
    SumTile([a](int64_t n) { return a + n * kLanes; }, vectors, count, sums);
  }
}

// The same with rows of numbers where they lie; kNumbers divides how many they are.
inline void SumProducts(const float* const* numbers, const float* vectors, int64_t count, Sums sums) {
  for (int64_t row = 0; sums.rows > 0; row += kNumbers, sums.rows -= kNumbers, sums.to += kNumbers * sums.apart) {
    SumTile([numbers, row](int64_t n) { return numbers[n] + row; }, vectors, count, sums);
  }
}

// From groups of sums of `size` numbers each to one, in the groups' order.
inline void AddGroups(const float* sums, int64_t groups, int64_t size, float* result, const Pool& pool) {
  constexpr int64_t kPiece = 4096;
  pool.Run(Ceil(size, kPiece), [&](int64_t piece) {
    const int64_t first = piece * kPiece, last = std::min(size, first + kPiece);
    std::copy(sums + first, sums + last, result + first);
    for (int64_t group = 1; group < groups; ++group) {
      const float* from = sums + group * size;
      for (int64_t n = first; n < last; ++n) result[n] += from[n];
    }
  });
}

}  // namespace flagship::FLAGSHIP_TARGET
