// Dao et al. 2022 (FlashAttention), algorithms 1 and 4, with tiles of queries for a GPU's blocks: a block of keys is
// packed once for many queries, and the scores of a tile stay in the cache until they have been multiplied.
//
// Every result is summed in an order that neither the number of threads nor their timing changes.

#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "exponential.h"
#include "product.h"
#include "simd.h"

namespace flagship::FLAGSHIP_TARGET {
namespace {

constexpr int64_t kKeys = 256;            // of a block; kColumns divides it
constexpr int64_t kQueries = 32 * kRows;  // of a task of the forward pass
constexpr int64_t kTogether = 8 * kRows;  // queries whose weights are held at once in the backward pass
constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline int64_t Whole(int64_t count) { return Ceil(count, kColumns) * kColumns; }

inline Vec Max(Vec a, Vec b) { return a > b ? a : b; }

// Rows of `width` numbers, `apart` from each other, turned: to (count / kColumns, width, kColumns), zeros behind the
// last row.
void PackTurned(const float* from, int64_t apart, int64_t count, int64_t width, float* to) {
  constexpr int64_t kSide = 8;
  for (int64_t first = 0; first < count; first += kColumns, to += width * kColumns) {
    const int64_t have = std::min<int64_t>(kColumns, count - first);
    const float* rows = from + first * apart;
    if (have < kColumns) std::fill_n(to, width * kColumns, 0.0f);
    int64_t n = 0;
    for (; n + kSide <= have; n += kSide) {
      int64_t c = 0;
      for (; c + kSide <= width; c += kSide) {
        __m256 line[kSide], pair[kSide];
#pragma GCC unroll 8
        for (int i = 0; i < kSide; ++i) line[i] = _mm256_loadu_ps(rows + (n + i) * apart + c);
#pragma GCC unroll 4
        for (int i = 0; i < kSide; i += 2) {
          pair[i] = _mm256_unpacklo_ps(line[i], line[i + 1]);
          pair[i + 1] = _mm256_unpackhi_ps(line[i], line[i + 1]);
        }
#pragma GCC unroll 2
        for (int i = 0; i < kSide; i += 4) {
          line[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
          line[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
          line[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
          line[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
        }
#pragma GCC unroll 4
        for (int i = 0; i < kSide / 2; ++i) {
          _mm256_storeu_ps(to + (c + i) * kColumns + n, _mm256_permute2f128_ps(line[i], line[i + 4], 0x20));
          _mm256_storeu_ps(to + (c + i + 4) * kColumns + n, _mm256_permute2f128_ps(line[i], line[i + 4], 0x31));
        }
      }
      for (; c < width; ++c) {
        for (int i = 0; i < kSide; ++i) to[c * kColumns + n + i] = rows[(n + i) * apart + c];
      }
    }
    for (; n < have; ++n) {
      for (int64_t c = 0; c < width; ++c) to[c * kColumns + n] = rows[n * apart + c];
    }
  }
}

// The same rows as they are: to (width / kColumns, count, kColumns), pieces `kKeys` rows apart, zeros behind the last
// number of a row and behind the last row.
void PackRows(const float* from, int64_t apart, int64_t count, int64_t width, float* to) {
  for (int64_t c = 0; c < width; c += kColumns, to += kKeys * kColumns) {
    const int64_t have = std::min<int64_t>(kColumns, width - c);
    for (int64_t n = 0; n < count; ++n) {
      const float* row = from + n * apart + c;
      for (int64_t v = 0; v < kColumns; v += kLanes) {
        const int64_t left = std::clamp<int64_t>(have - v, 0, kLanes);
        Store(to + n * kColumns + v, left == kLanes ? Load(row + v) : left ? LoadSome(row + v, left) : Vec{});
      }
    }
    std::fill_n(to + count * kColumns, (Whole(count) - count) * kColumns, 0.0f);
  }
}

// A tile of queries: where its rows begin, and what each of them sees. Rows behind the last one are zeros.
struct Tile {
  const float* rows[kRows];
  int64_t first[kRows], last[kRows];
  int32_t segment[kRows];
};

// What one head of one example multiplies.
struct Head {
  const AttentionShape& s;
  const float *q, *k, *v;  // its first rows
  const int32_t *query_segments, *key_segments;
  const float* zeros;

  int64_t query_apart() const { return s.heads * s.width; }
  int64_t key_apart() const { return s.groups * s.width; }

  Tile At(int64_t row, const float* from) const {
    Tile tile;
    for (int m = 0; m < kRows; ++m) {
      const bool there = row + m < s.length;
      tile.rows[m] = there ? from + (row + m) * query_apart() : zeros;
      tile.segment[m] = there && query_segments != nullptr ? query_segments[row + m] : 0;
      const bool sees = there && tile.segment[m] >= 0;
      tile.first[m] = there ? s.first(row + m) : s.first(s.length - 1);
      tile.last[m] = sees ? s.last(row + m) : 0;
    }
    return tile;
  }
};

// What a tile sees of a block of keys that begins at `start`: columns, by whole vectors of kColumns. Where segments
// hide all of it, that is found number by number.
struct Columns {
  int64_t first, last;

  Columns(const AttentionShape& s, int64_t row, int64_t start, int64_t count) {
    const int64_t end = std::min(row + kRows, s.length) - 1;
    first = std::clamp<int64_t>(s.first(row) - start, 0, count) / kColumns * kColumns;
    last = Whole(std::clamp<int64_t>(s.last(end) - start, 0, count));
    first = std::min(first, last);
  }
};

inline IntVec Places() {
  IntVec places;
  for (int lane = 0; lane < kLanes; ++lane) places[lane] = lane;
  return places;
}

// The scores of a tile with kColumns keys, −∞ for what is not seen; and the soft cap's slope if
// asked.
inline void Score(const AttentionShape& s, const Tile& tile, int64_t start, const int32_t* key_segments,
                  const float* columns, Vec (&score)[kRows][kVectors], Vec (*slope)[kVectors]) {
  for (auto& row : score) {
    for (auto& each : row) each = Vec{};
  }
  Multiply<kVectors>(tile.rows, 1, 0, s.width, columns, 0, score);
  const float factor = s.softcap > 0.0f ? s.scale / s.softcap : s.scale;
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) score[m][n] *= factor;
  }
  if (s.softcap > 0.0f) {
    for (int m = 0; m < kRows; ++m) {
      for (int n = 0; n < kVectors; ++n) {
        const Vec capped = Tanh(score[m][n]);
        if (slope != nullptr) slope[m][n] = 1.0f - capped * capped;
        score[m][n] = capped * s.softcap;
      }
    }
  }
  const IntVec places = Places();
  for (int m = 0; m < kRows; ++m) {
    if (key_segments == nullptr && tile.first[m] <= start && tile.last[m] >= start + kColumns) continue;
    for (int n = 0; n < kVectors; ++n) {
      const IntVec place = places + static_cast<int32_t>(n * kLanes);
      const int32_t first = std::clamp<int64_t>(tile.first[m] - start, 0, kColumns);
      const int32_t last = std::clamp<int64_t>(tile.last[m] - start, 0, kColumns);
      IntVec seen = (place >= first) & (place < last);
      if (key_segments != nullptr) {
        IntVec segments;
        __builtin_memcpy(&segments, key_segments + n * kLanes, sizeof segments);
        seen &= segments == tile.segment[m];
      }
      score[m][n] = seen ? score[m][n] : Vec{} - kInfinity;
    }
  }
}

// Segments of a block of keys, with ones that nobody has behind the last; null where there are none.
const int32_t* PadSegments(const int32_t* segments, int64_t start, int64_t count, std::vector<int32_t>& padded) {
  if (segments == nullptr) return nullptr;
  padded.assign(kKeys, -1);
  std::copy_n(segments + start, count, padded.begin());
  return padded.data();
}

inline Head HeadOf(const AttentionShape& s, const float* q, const float* k, const float* v, const int32_t* queries,
                   const int32_t* keys, const float* zeros, int64_t example, int64_t head) {
  const int64_t group = head / (s.heads / s.groups);
  const int64_t of_q = (example * s.length * s.heads + head) * s.width;
  const int64_t of_k = (example * s.keys * s.groups + group) * s.width;
  return {s,
          q + of_q,
          k + of_k,
          v + of_k,
          queries != nullptr ? queries + example * s.length : nullptr,
          keys != nullptr ? keys + example * s.keys : nullptr,
          zeros};
}

inline float Greatest(Vec value) {
  float greatest = value[0];
  for (int lane = 1; lane < kLanes; ++lane) greatest = value[lane] > greatest ? value[lane] : greatest;
  return greatest;
}

inline float Total(Vec value) {
  float total = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) total += value[lane];
  return total;
}

}  // namespace

void AttentionForward(const AttentionShape& s, const AttentionForwardArrays& a, const Pool& pool) {
  const int64_t chunks = Ceil(s.length, kQueries), padded = Whole(s.width);
  const int64_t most_keys = std::min(kKeys, Whole(s.keys)),
                most_rows = std::min(kQueries, Ceil(s.length, kRows) * kRows);
  pool.Work(s.batch * s.heads * chunks, [&](const Pool::Next& next) {
    Buffer turned = Allocate(most_keys * s.width), values = Allocate(padded * kKeys), zeros = Allocate(s.width);
    Buffer scores = Allocate(kRows * kKeys), outputs = Allocate(most_rows * padded);
    std::fill_n(zeros.get(), s.width, 0.0f);
    std::vector<float> greatest(most_rows), total(most_rows);
    std::vector<int32_t> segments;
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t example = task / (s.heads * chunks), head = task / chunks % s.heads, chunk = task % chunks;
      const Head of = HeadOf(s, a.q, a.k, a.v, a.query_segments, a.key_segments, zeros.get(), example, head);
      const int64_t top = chunk * kQueries, bottom = std::min(top + kQueries, s.length);
      const int64_t end = s.last(bottom - 1);
      std::fill(greatest.begin(), greatest.end(), -kInfinity);
      std::fill(total.begin(), total.end(), 0.0f);
      std::fill_n(outputs.get(), most_rows * padded, 0.0f);
      for (int64_t start = s.first(top); start < end; start += kKeys) {
        const int64_t count = std::min(kKeys, end - start);
        PackTurned(of.k + start * of.key_apart(), of.key_apart(), count, s.width, turned.get());
        PackRows(of.v + start * of.key_apart(), of.key_apart(), count, s.width, values.get());
        const int32_t* key_segments = PadSegments(of.key_segments, start, count, segments);
        for (int64_t row = top; row < bottom; row += kRows) {
          const Columns columns(s, row, start, count);
          if (columns.first == columns.last) continue;
          const Tile tile = of.At(row, of.q);
          Vec most[kRows];
          for (auto& each : most) each = Vec{} - kInfinity;
          for (int64_t column = columns.first; column < columns.last; column += kColumns) {
            Vec score[kRows][kVectors];
            Score(s, tile, start + column, key_segments ? key_segments + column : nullptr,
                  turned.get() + column * s.width, score, nullptr);
#pragma GCC unroll 16
            for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
              for (int n = 0; n < kVectors; ++n) {
                Store(scores.get() + m * kKeys + column + n * kLanes, score[m][n]);
                most[m] = Max(score[m][n], most[m]);
              }
            }
          }
          float shrunk[kRows];
          const float* weights[kRows];
          for (int m = 0; m < kRows; ++m) {
            float& before = greatest[row - top + m];
            const float now = std::max(before, Greatest(most[m])), safe = now == -kInfinity ? 0.0f : now;
            shrunk[m] = before == -kInfinity ? 0.0f : std::exp(before - safe);
            before = now;
            Vec sum = {};
            float* line = scores.get() + m * kKeys;
            for (int64_t column = columns.first; column < columns.last; column += kLanes) {
              const Vec weight = Exp(Load(line + column) - safe);
              sum += weight;
              Store(line + column, weight);
            }
            total[row - top + m] = total[row - top + m] * shrunk[m] + Total(sum);
            weights[m] = line + columns.first;
          }
          for (int64_t piece = 0; piece < padded; piece += kColumns) {
            float* out = outputs.get() + (row - top) * padded + piece;
            Vec acc[kRows][kVectors];
            for (int m = 0; m < kRows; ++m) {
              for (int n = 0; n < kVectors; ++n) acc[m][n] = Load(out + m * padded + n * kLanes) * shrunk[m];
            }
            Multiply<kVectors>(weights, 1, 0, columns.last - columns.first,
                               values.get() + piece * kKeys + columns.first * kColumns, 0, acc);
            for (int m = 0; m < kRows; ++m) {
              for (int n = 0; n < kVectors; ++n) Store(out + m * padded + n * kLanes, acc[m][n]);
            }
          }
        }
      }
      for (int64_t row = top; row < bottom; ++row) {
        const float sum = total[row - top], inverse = sum > 0.0f ? 1.0f / sum : sum == 0.0f ? 0.0f : sum;
        const int64_t place = (example * s.length + row) * s.heads + head;
        const float* from = outputs.get() + (row - top) * padded;
        for (int64_t c = 0; c < s.width; ++c) a.output[place * s.width + c] = from[c] * inverse;
        a.sums[place] = sum == 0.0f ? -kInfinity : greatest[row - top] + std::log(sum);
      }
    }
  });
}

void AttentionBackward(const AttentionShape& s, const AttentionBackwardArrays& a, const Pool& pool) {
  const int64_t padded = Whole(s.width), repeats = s.heads / s.groups;
  // Where heads share a key, each has sums of its own first.
  Buffer own_k, own_v;
  if (repeats > 1) {
    own_k = Allocate(s.batch * s.keys * s.heads * s.width);
    own_v = Allocate(s.batch * s.keys * s.heads * s.width);
  }
  float *const all_k = repeats > 1 ? own_k.get() : a.to_k, *const all_v = repeats > 1 ? own_v.get() : a.to_v;
  const int64_t apart = s.heads * s.width;  // of rows of these, and of queries
  pool.Work(s.batch * s.heads, [&](const Pool::Next& next) {
    Buffer turned_k = Allocate(kKeys * s.width), turned_v = Allocate(kKeys * s.width), zeros = Allocate(s.width);
    Buffer packed_k = Allocate(padded * kKeys), weights = Allocate(kTogether * kKeys),
           slopes = Allocate(kTogether * kKeys);
    Buffer packed_q = Allocate(padded / kColumns * Apart(kTogether, kColumns));
    Buffer packed_g = Allocate(padded / kColumns * Apart(kTogether, kColumns));
    std::fill_n(zeros.get(), s.width, 0.0f);
    std::vector<float> sums(Ceil(s.length, kRows) * kRows), inner(sums.size());
    std::vector<char> started(Ceil(s.length, kTogether));
    std::vector<int32_t> segments;
    for (int64_t task; (task = next()) >= 0;) {
      const int64_t example = task / s.heads, head = task % s.heads;
      const Head of = HeadOf(s, a.q, a.k, a.v, a.query_segments, a.key_segments, zeros.get(), example, head);
      const int64_t of_q = (example * s.length * s.heads + head) * s.width;
      const float *const g = a.to_output + of_q, *const output = a.output + of_q;
      float* const to_q = a.to_q + of_q;
      // What every score of a row has in common: its log-sum-exp, and the mean that the softmax subtracts.
      for (int64_t row = 0; row < static_cast<int64_t>(sums.size()); ++row) {
        const int64_t place = (example * s.length + row) * s.heads + head;
        const bool there = row < s.length && a.sums[place] != -kInfinity;
        sums[row] = there ? a.sums[place] : kInfinity;  // no weight where nothing is seen
        inner[row] = there ? -a.to_sums[place] : 0.0f;
        for (int64_t c = 0; there && c < s.width; ++c) inner[row] += g[row * apart + c] * output[row * apart + c];
      }
      std::fill(started.begin(), started.end(), 0);
      for (int64_t start = 0; start < s.keys; start += kKeys) {
        const int64_t count = std::min(kKeys, s.keys - start), whole = Whole(count);
        PackTurned(of.k + start * of.key_apart(), of.key_apart(), count, s.width, turned_k.get());
        PackTurned(of.v + start * of.key_apart(), of.key_apart(), count, s.width, turned_v.get());
        PackRows(of.k + start * of.key_apart(), of.key_apart(), count, s.width, packed_k.get());
        const int32_t* key_segments = PadSegments(of.key_segments, start, count, segments);
        float* const to_k = all_k + ((example * s.keys + start) * s.heads + head) * s.width;
        float* const to_v = all_v + ((example * s.keys + start) * s.heads + head) * s.width;
        bool keys_started = false;
        for (int64_t top = 0; top < s.length; top += kTogether) {
          const int64_t bottom = std::min(top + kTogether, s.length);
          if (s.last(bottom - 1) <= start || s.first(top) >= start + count) continue;
          for (int64_t row = top; row < bottom; row += kRows) {
            const Columns columns(s, row, start, count);
            const Tile queries = of.At(row, of.q), gradients = of.At(row, g);
            float* const weight_rows = weights.get() + (row - top) * kKeys;
            float* const slope_rows = slopes.get() + (row - top) * kKeys;
            for (int64_t column = 0; column < whole; column += kColumns) {
              if (column < columns.first || column >= columns.last) {
                for (int m = 0; m < kRows; ++m) {
                  std::fill_n(weight_rows + m * kKeys + column, kColumns, 0.0f);
                  std::fill_n(slope_rows + m * kKeys + column, kColumns, 0.0f);
                }
                continue;
              }
              Vec score[kRows][kVectors], cap[kRows][kVectors], to_weight[kRows][kVectors] = {};
              Score(s, queries, start + column, key_segments ? key_segments + column : nullptr,
                    turned_k.get() + column * s.width, score, cap);
              for (int m = 0; m < kRows; ++m) {
                for (int n = 0; n < kVectors; ++n) {
                  // At most 1: among large scores the log-sum-exp is rounded by more than weights can bear.
                  const Vec below = score[m][n] - sums[row + m], weight = Exp(below > 0.0f ? Vec{} : below);
                  Store(weight_rows + m * kKeys + column + n * kLanes, weight);
                  score[m][n] = (s.softcap > 0.0f ? weight * cap[m][n] : weight) * s.scale;
                }
              }
              Multiply<kVectors>(gradients.rows, 1, 0, s.width, turned_v.get() + column * s.width, 0, to_weight);
              for (int m = 0; m < kRows; ++m) {
                for (int n = 0; n < kVectors; ++n) {
                  const Vec slope = score[m][n] * (to_weight[m][n] - inner[row + m]);
                  Store(slope_rows + m * kKeys + column + n * kLanes, slope);
                }
              }
            }
            const float* lines[kRows];
            for (int m = 0; m < kRows; ++m) lines[m] = slope_rows + m * kKeys + columns.first;
            const bool add = started[top / kTogether];
            for (int64_t piece = 0; piece < padded; piece += kColumns) {
              Vec acc[kRows][kVectors] = {};
              Multiply<kVectors>(lines, 1, 0, columns.last - columns.first,
                                 packed_k.get() + piece * kKeys + columns.first * kColumns, 0, acc);
              for (int m = 0; m < kRows && row + m < bottom; ++m) {
                for (int n = 0; n < kVectors; ++n) {
                  const int64_t have = std::min<int64_t>(kLanes, s.width - piece - n * kLanes);
                  if (have <= 0) break;
                  float* to = to_q + (row + m) * apart + piece + n * kLanes;
                  if (have == kLanes) {
                    Store(to, add ? Load(to) + acc[m][n] : acc[m][n]);
                  } else {
                    StoreSome(to, add ? LoadSome(to, have) + acc[m][n] : acc[m][n], have);
                  }
                }
              }
            }
          }
          started[top / kTogether] = 1;
          const int64_t rows = bottom - top;
          const float *q_rows[kTogether], *g_rows[kTogether], *weight_rows[kTogether], *slope_rows[kTogether];
          for (int64_t n = 0; n < rows; ++n) {
            q_rows[n] = of.q + (top + n) * apart;
            g_rows[n] = g + (top + n) * apart;
            weight_rows[n] = weights.get() + n * kKeys;
            slope_rows[n] = slopes.get() + n * kKeys;
          }
          PackVectors(q_rows, rows, s.width, packed_q.get());
          PackVectors(g_rows, rows, s.width, packed_g.get());
          for (int64_t piece = 0; piece < padded; piece += kColumns) {
            const int64_t columns = std::min<int64_t>(kColumns, s.width - piece);
            const int64_t packed = piece / kColumns * Apart(rows, kColumns);
            SumProducts(slope_rows, packed_q.get() + packed, rows, {to_k + piece, apart, count, columns, keys_started});
            SumProducts(weight_rows, packed_g.get() + packed, rows,
                        {to_v + piece, apart, count, columns, keys_started});
          }
          keys_started = true;
        }
        for (int64_t key = 0; !keys_started && key < count; ++key) {
          std::fill_n(to_k + key * apart, s.width, 0.0f);
          std::fill_n(to_v + key * apart, s.width, 0.0f);
        }
      }
      for (int64_t row = 0; row < s.length; ++row) {
        if (!started[row / kTogether]) std::fill_n(to_q + row * apart, s.width, 0.0f);
      }
    }
  });
  if (repeats == 1) return;
  pool.Run(s.batch * s.keys, [&](int64_t row) {
    for (int64_t group = 0; group < s.groups; ++group) {
      for (const auto& [from, result] : {std::pair(own_k.get(), a.to_k), {own_v.get(), a.to_v}}) {
        const float* own = from + (row * s.heads + group * repeats) * s.width;
        float* to = result + (row * s.groups + group) * s.width;
        std::copy_n(own, s.width, to);
        for (int64_t repeat = 1; repeat < repeats; ++repeat) {
          for (int64_t c = 0; c < s.width; ++c) to[c] += own[repeat * s.width + c];
        }
      }
    }
  });
}

}  // namespace flagship::FLAGSHIP_TARGET
