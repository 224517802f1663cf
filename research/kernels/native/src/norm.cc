// A row is read from memory once in each direction: it stays in L1 for its statistics and for what is made of them.
//
// Every result is summed in an order that neither the number of threads nor their timing changes.

#include "norm.h"

#include <algorithm>
#include <cmath>

#include "product.h"
#include "simd.h"

namespace flagship::FLAGSHIP_TARGET {
namespace {

constexpr int64_t kRowsOfTask = 32;  // at least
constexpr int64_t kGroups = 16;      // of rows, at most, whose gradients to the parameters are summed apart
constexpr int kAtOnce = 4;           // vectors: a sum waits for the one before it

// Calls step(column, load, store) for each vector of a row; load and store know how many numbers the last one has.
template <typename Step>
inline void EachVector(int64_t width, const Step& step) {
  int64_t column = 0;
  const auto load = [](const float* from) { return Load(from); };
  const auto store = [](float* to, Vec value) { Store(to, value); };
  for (; column + kLanes <= width; column += kLanes) step(column, load, store);
  if (const int64_t left = width - column; left > 0) {
    step(
        column, [left](const float* from) { return LoadSome(from, left); },
        [left](float* to, Vec value) { StoreSome(to, value, left); });
  }
}

inline float Total(Vec value) {
  float total = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) total += value[lane];
  return total;
}

// Σ over a row of of(vector of each array), in kAtOnce sums.
template <typename Of>
inline float Sum(int64_t width, const Of& of) {
  Vec sums[kAtOnce] = {};
  int64_t column = 0;
  for (; column + kAtOnce * kLanes <= width; column += kAtOnce * kLanes) {
#pragma GCC unroll 8
    for (int n = 0; n < kAtOnce; ++n) sums[n] += of(column + n * kLanes, kLanes);
  }
  for (; column < width; column += kLanes) sums[0] += of(column, std::min<int64_t>(kLanes, width - column));
  return Total((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

inline Vec LoadUpTo(const float* from, int64_t count) { return count == kLanes ? Load(from) : LoadSome(from, count); }

}  // namespace

void NormForward(const NormShape& s, const NormForwardArrays& a, const Pool& pool) {
  const int64_t tasks = std::clamp<int64_t>(s.rows / kRowsOfTask, 1, 4 * pool.threads());
  pool.Run(tasks, [&](int64_t task) {
    for (int64_t row = s.rows * task / tasks; row < s.rows * (task + 1) / tasks; ++row) {
      const float* x = a.x + row * s.width;
      if (a.residual != nullptr) {
        const float* residual = a.residual + row * s.width;
        float* total = a.total + row * s.width;
        EachVector(s.width,
                   [&](int64_t c, auto load, auto store) { store(total + c, load(x + c) + load(residual + c)); });
        x = total;
      }
      float mean = 0.0f;
      if (s.layer) {
        mean = Sum(s.width, [&](int64_t c, int64_t count) { return LoadUpTo(x + c, count); }) / s.width;
        a.mean[row] = mean;
      }
      const float squares = Sum(s.width, [&](int64_t c, int64_t count) {
        if (count == kLanes) {
          const Vec centred = Load(x + c) - mean;
          return centred * centred;
        }
        Vec value = LoadSome(x + c, count);
        for (int lane = 0; lane < kLanes; ++lane) value[lane] = lane < count ? value[lane] - mean : 0.0f;
        return value * value;
      });
      const float inverse = 1.0f / std::sqrt(squares / s.width + s.epsilon);
      a.inverse[row] = inverse;
      float* y = a.y + row * s.width;
      EachVector(s.width, [&](int64_t c, auto load, auto store) {
        Vec value = (load(x + c) - mean) * inverse;
        if (a.scale != nullptr) value *= load(a.scale + c);
        if (a.bias != nullptr) value += load(a.bias + c);
        store(y + c, value);
      });
    }
  });
}

void NormBackward(const NormShape& s, const NormBackwardArrays& a, const Pool& pool) {
  // The groups are those of the rows alone, and so are the sums.
  const int64_t groups = std::clamp<int64_t>(s.rows / kRowsOfTask, 1, kGroups);
  const int64_t apart = Ceil(s.width, kLanes) * kLanes;  // of groups' sums, so that no two threads write to one line
  const bool sums = a.to_scale != nullptr || a.to_bias != nullptr;
  Buffer to_scales = Allocate(sums ? groups * apart : 1), to_biases = Allocate(sums ? groups * apart : 1);
  pool.Run(groups, [&](int64_t group) {
    float *to_scale = to_scales.get() + group * apart, *to_bias = to_biases.get() + group * apart;
    if (sums) std::fill_n(to_scale, apart, 0.0f), std::fill_n(to_bias, apart, 0.0f);
    for (int64_t row = s.rows * group / groups; row < s.rows * (group + 1) / groups; ++row) {
      const float *x = a.x + row * s.width, *to_y = a.to_y + row * s.width;
      const float mean = s.layer ? a.mean[row] : 0.0f, inverse = a.inverse[row];
      const auto scaled = [&](int64_t c, int64_t count) {
        const Vec slope = LoadUpTo(to_y + c, count);
        return a.scale != nullptr ? slope * LoadUpTo(a.scale + c, count) : slope;
      };
      // Behind a row's end the gradients are zeros, whatever its numbers are there.
      const float along =
          Sum(s.width, [&](int64_t c,
                           int64_t count) { return scaled(c, count) * ((LoadUpTo(x + c, count) - mean) * inverse); }) /
          s.width;
      const float plain = s.layer ? Sum(s.width, scaled) / s.width : 0.0f;
      float* to_x = a.to_x + row * s.width;
      const float* to_total = a.to_total != nullptr ? a.to_total + row * s.width : nullptr;
      EachVector(s.width, [&](int64_t c, auto load, auto store) {
        const Vec slope = load(to_y + c), normal = (load(x + c) - mean) * inverse;
        Vec value = a.scale != nullptr ? slope * load(a.scale + c) : slope;
        value = (value - normal * along - plain) * inverse;
        if (to_total != nullptr) value += load(to_total + c);
        store(to_x + c, value);
        if (a.to_scale != nullptr) store(to_scale + c, load(to_scale + c) + slope * normal);
        if (a.to_bias != nullptr) store(to_bias + c, load(to_bias + c) + slope);
      });
    }
  });
  for (const auto& [of_groups, result] : {std::pair(to_scales.get(), a.to_scale), {to_biases.get(), a.to_bias}}) {
    if (result == nullptr) continue;
    std::copy_n(of_groups, s.width, result);
    for (int64_t group = 1; group < groups; ++group) {
      for (int64_t c = 0; c < s.width; ++c) result[c] += of_groups[group * apart + c];
    }
  }
}

}  // namespace flagship::FLAGSHIP_TARGET
