// The C++ kernels on random shapes, against sums in double and with their results poisoned with NaN first; and the same
// bits from one thread and from five. Compiled with AddressSanitizer by test_native.py, for each instruction set.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "attention.h"
#include "conv.h"
#include "norm.h"

namespace {

using flagship::ConvShape;

class Threads : public flagship::Pool {
 public:
  explicit Threads(int count) : count_(count) {}
  int64_t threads() const override { return count_; }
  void Work(int64_t count, const Worker& worker) const override {
    std::atomic<int64_t> given{0};
    const auto next = [&]() -> int64_t {
      const int64_t number = given++;
      return number < count ? number : -1;
    };
    std::vector<std::thread> others;
    for (int n = 1; n < count_; ++n) others.emplace_back([&] { worker(next); });
    worker(next);
    for (auto& each : others) each.join();
  }

 private:
  int count_;
};

std::mt19937 random_bits(1);

int64_t Between(int64_t low, int64_t high) { return low + static_cast<int64_t>(random_bits() % (high - low + 1)); }

std::vector<float> Normal(size_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (auto& number : numbers) number = normal(random_bits);
  return numbers;
}

// The greatest error beside the greatest value, or NaN.
double Error(const std::vector<float>& found, const std::vector<double>& exact) {
  double scale = 1, error = 0;
  for (size_t n = 0; n < found.size(); ++n) {
    scale = std::max(scale, std::fabs(exact[n]));
    const double here = std::fabs(found[n] - exact[n]);
    if (!(here <= error)) error = here;
  }
  return error / scale;
}

bool Check(const ConvShape& s) {
  const size_t of_x = s.batch * s.height * s.width * s.channels,
               of_y = s.batch * s.out_height * s.out_width * s.outputs;
  const size_t of_kernel = s.kernel_height * s.kernel_width * s.channels * s.outputs;
  const auto x = Normal(of_x), kernel = Normal(of_kernel), g = Normal(of_y);
  std::vector<double> y(of_y), to_x(of_x), to_kernel(of_kernel);
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t i = 0; i < s.out_height; ++i)
      for (int64_t j = 0; j < s.out_width; ++j)
        for (int64_t p = 0; p < s.kernel_height; ++p)
          for (int64_t q = 0; q < s.kernel_width; ++q) {
            const int64_t row = i * s.stride_y + p - s.low_y, column = j * s.stride_x + q - s.low_x;
            if (row < 0 || column < 0 || row >= s.height || column >= s.width) continue;
            for (int64_t c = 0; c < s.channels; ++c)
              for (int64_t o = 0; o < s.outputs; ++o) {
                const size_t at_x = ((b * s.height + row) * s.width + column) * s.channels + c;
                const size_t at_y = ((b * s.out_height + i) * s.out_width + j) * s.outputs + o;
                const size_t at_kernel = ((p * s.kernel_width + q) * s.channels + c) * s.outputs + o;
                y[at_y] += static_cast<double>(x[at_x]) * kernel[at_kernel];
                to_x[at_x] += static_cast<double>(g[at_y]) * kernel[at_kernel];
                to_kernel[at_kernel] += static_cast<double>(x[at_x]) * g[at_y];
              }
          }
  std::vector<float> found[2][3];
  for (int turn = 0; turn < 2; ++turn) {
    const Threads pool(turn ? 5 : 1);
    auto& results = found[turn];
    results[0].assign(of_y, NAN), results[1].assign(of_x, NAN), results[2].assign(of_kernel, NAN);
    flagship::FLAGSHIP_TARGET::ConvForward(s, x.data(), kernel.data(), results[0].data(), pool);
    flagship::FLAGSHIP_TARGET::ConvInputGradient(s, g.data(), kernel.data(), results[1].data(), pool);
    flagship::FLAGSHIP_TARGET::ConvWeightGradient(s, x.data(), g.data(), results[2].data(), pool);
  }
  const double errors[] = {Error(found[0][0], y), Error(found[0][1], to_x), Error(found[0][2], to_kernel)};
  bool right = true;
  for (int n = 0; n < 3; ++n) right = right && errors[n] < 1e-5 && found[0][n] == found[1][n];
  if (!right) {
    std::printf("x %ld×%ld×%ld×%ld, kernel %ld×%ld×%ld, y %ld×%ld, strides %ld %ld, lows %ld %ld: %g %g %g\n", s.batch,
                s.height, s.width, s.channels, s.kernel_height, s.kernel_width, s.outputs, s.out_height, s.out_width,
                s.stride_y, s.stride_x, s.low_y, s.low_x, errors[0], errors[1], errors[2]);
  }
  return right;
}

// Whether results from one thread and from five are the same, and those sums in double.
bool Right(const char* what, const std::vector<std::vector<float>> (&found)[2],
           const std::vector<std::vector<double>>& exact) {
  bool right = true;
  for (size_t n = 0; n < exact.size(); ++n) {
    if (found[0][n].empty()) continue;  // not asked for
    const double error = Error(found[0][n], exact[n]);
    // Bits, since a NaN is no number that it is equal to.
    const bool same = std::memcmp(found[0][n].data(), found[1][n].data(), found[0][n].size() * sizeof(float)) == 0;
    if (!(error < 1e-5) || !same) std::printf("%s, result %zu: %g, %s\n", what, n, error, same ? "same" : "other bits");
    right = right && error < 1e-5 && same;
  }
  return right;
}

std::vector<float> Poisoned(size_t count) { return std::vector<float>(count, NAN); }

bool CheckNorm() {
  const int64_t rows = Between(1, 300), width = Between(1, 150);
  const bool layer = Between(0, 1), residual = Between(0, 1), scale = Between(0, 1), bias = Between(0, 1);
  const flagship::NormShape s{rows, width, layer, 1e-2f};
  const size_t all = rows * width;
  const auto x = Normal(all), more = Normal(all), factors = Normal(width), offsets = Normal(width);
  const auto to_y = Normal(all), to_total = Normal(all);
  std::vector<double> y(all), total(all), means(rows), inverses(rows), to_x(all), to_factors(width), to_offsets(width);
  for (int64_t r = 0; r < rows; ++r) {
    double mean = 0, squares = 0, along = 0, plain = 0;
    for (int64_t c = 0; c < width; ++c) {
      const size_t at = r * width + c;
      total[at] = residual ? static_cast<double>(x[at] + more[at]) : x[at];
      mean += layer ? total[at] / width : 0;
    }
    for (int64_t c = 0; c < width; ++c) squares += std::pow(total[r * width + c] - mean, 2) / width;
    const double inverse = 1 / std::sqrt(squares + 1e-2f);
    means[r] = mean, inverses[r] = inverse;
    for (int64_t c = 0; c < width; ++c) {
      const size_t at = r * width + c;
      const double normal = (total[at] - mean) * inverse, slope = to_y[at] * (scale ? factors[c] : 1.0);
      y[at] = normal * (scale ? factors[c] : 1.0) + (bias ? offsets[c] : 0.0);
      along += slope * normal / width, plain += layer ? slope / width : 0;
      to_factors[c] += to_y[at] * normal, to_offsets[c] += to_y[at];
    }
    for (int64_t c = 0; c < width; ++c) {
      const size_t at = r * width + c;
      const double normal = (total[at] - mean) * inverse, slope = to_y[at] * (scale ? factors[c] : 1.0);
      to_x[at] = (slope - normal * along - plain) * inverse + (residual ? to_total[at] : 0.0);
    }
  }
  std::vector<std::vector<float>> found[2];
  for (int turn = 0; turn < 2; ++turn) {
    const Threads pool(turn ? 5 : 1);
    auto& out = found[turn];
    out = {Poisoned(all), Poisoned(residual ? all : 0), Poisoned(layer ? rows : 0), Poisoned(rows),
           Poisoned(all), Poisoned(scale ? width : 0),  Poisoned(bias ? width : 0)};
    const auto there = [](bool is, auto* array) { return is ? array : nullptr; };
    flagship::FLAGSHIP_TARGET::NormForward(
        s,
        {x.data(), there(residual, more.data()), there(scale, factors.data()), there(bias, offsets.data()),
         out[0].data(), there(residual, out[1].data()), there(layer, out[2].data()), out[3].data()},
        pool);
    flagship::FLAGSHIP_TARGET::NormBackward(
        s,
        {residual ? out[1].data() : x.data(), there(layer, out[2].data()), out[3].data(), there(scale, factors.data()),
         to_y.data(), there(residual, to_total.data()), out[4].data(), there(scale, out[5].data()),
         there(bias, out[6].data())},
        pool);
  }
  return Right("norm", found, {y, total, means, inverses, to_x, to_factors, to_offsets});
}

bool CheckAttention() {
  flagship::AttentionShape s{};
  s.batch = Between(1, 3), s.length = Between(1, 90), s.groups = Between(1, 3), s.heads = s.groups * Between(1, 2);
  s.keys = Between(0, 1) ? s.length : Between(0, 3) ? Between(1, 90) : Between(250, 530);
  s.width = Between(1, 70), s.causal = Between(0, 1), s.window = Between(0, 1) ? Between(1, 60) : 0;
  s.softcap = Between(0, 2) ? 0.0f : 2.0f, s.scale = 0.3f;
  const bool segments = Between(0, 2) == 0;
  const size_t of_q = s.batch * s.length * s.heads * s.width, of_k = s.batch * s.keys * s.groups * s.width;
  const size_t of_sums = s.batch * s.length * s.heads;
  const auto q = Normal(of_q), k = Normal(of_k), v = Normal(of_k), g = Normal(of_q), to_sums = Normal(of_sums);
  std::vector<int32_t> query_segments(s.batch * s.length), key_segments(s.batch * s.keys);
  for (auto& each : query_segments) each = Between(-1, 2);
  for (auto& each : key_segments) each = Between(-1, 2);
  std::vector<double> output(of_q), sums(of_sums), to_q(of_q), to_k(of_k), to_v(of_k);
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t row = 0; row < s.length; ++row)
      for (int64_t head = 0; head < s.heads; ++head) {
        const size_t at = (b * s.length + row) * s.heads + head;
        const int64_t place = row + s.keys - s.length;
        std::vector<double> scores, slopes;
        std::vector<size_t> seen;
        double greatest = -INFINITY, total = 0, inner = 0;
        for (int64_t key = 0; key < s.keys; ++key) {
          if (s.causal && key > place) continue;
          if (s.window && (key <= place - s.window || (!s.causal && key >= place + s.window))) continue;
          const int32_t segment = query_segments[b * s.length + row];
          if (segments && (segment < 0 || segment != key_segments[b * s.keys + key])) continue;
          const size_t of = (b * s.keys + key) * s.groups + head / (s.heads / s.groups);
          double score = 0;
          for (int64_t c = 0; c < s.width; ++c) {
            score += static_cast<double>(s.scale) * q[at * s.width + c] * k[of * s.width + c];
          }
          const double capped = s.softcap > 0 ? std::tanh(score / s.softcap) : 0;
          slopes.push_back(s.softcap > 0 ? 1 - capped * capped : 1);
          scores.push_back(s.softcap > 0 ? s.softcap * capped : score);
          seen.push_back(of);
          greatest = std::max(greatest, scores.back());
        }
        for (const double score : scores) total += std::exp(score - greatest);
        sums[at] = seen.empty() ? 0 : greatest + std::log(total);
        std::vector<double> to_weights(seen.size());
        for (size_t n = 0; n < seen.size(); ++n) {
          scores[n] = std::exp(scores[n] - greatest) / total;  // a weight now
          for (int64_t c = 0; c < s.width; ++c) {
            output[at * s.width + c] += scores[n] * v[seen[n] * s.width + c];
            to_weights[n] += static_cast<double>(g[at * s.width + c]) * v[seen[n] * s.width + c];
            to_v[seen[n] * s.width + c] += scores[n] * g[at * s.width + c];
          }
          inner += scores[n] * to_weights[n];
        }
        for (size_t n = 0; n < seen.size(); ++n) {
          const double slope = s.scale * slopes[n] * scores[n] * (to_weights[n] - inner + to_sums[at]);
          for (int64_t c = 0; c < s.width; ++c) {
            to_q[at * s.width + c] += slope * k[seen[n] * s.width + c];
            to_k[seen[n] * s.width + c] += slope * q[at * s.width + c];
          }
        }
      }
  std::vector<std::vector<float>> found[2];
  for (int turn = 0; turn < 2; ++turn) {
    const Threads pool(turn ? 5 : 1);
    auto& out = found[turn];
    out = {Poisoned(of_q), Poisoned(of_sums), Poisoned(of_q), Poisoned(of_k), Poisoned(of_k)};
    const int32_t *queries = segments ? query_segments.data() : nullptr,
                  *keys = segments ? key_segments.data() : nullptr;
    flagship::FLAGSHIP_TARGET::AttentionForward(
        s, {q.data(), k.data(), v.data(), queries, keys, out[0].data(), out[1].data()}, pool);
    flagship::FLAGSHIP_TARGET::AttentionBackward(
        s,
        {q.data(), k.data(), v.data(), queries, keys, out[0].data(), out[1].data(), g.data(), to_sums.data(),
         out[2].data(), out[3].data(), out[4].data()},
        pool);
    for (float& sum : out[1]) sum = sum == -INFINITY ? 0 : sum;  // of a row that sees nothing
  }
  return Right("attention", found, {output, sums, to_q, to_k, to_v});
}

}  // namespace

int main(int count, char** arguments) {
  int64_t done = 0;
  const int64_t wanted = count > 1 ? std::atoll(arguments[1]) : 200;
  while (done < wanted) {
    ConvShape s{};
    s.batch = Between(1, 11), s.height = Between(1, 23), s.width = Between(1, 23);
    s.channels = Between(0, 3) ? Between(1, 70) : Between(1, 4),
    s.outputs = Between(0, 3) ? Between(1, 70) : Between(1, 4);
    const bool common = Between(0, 2) == 0;  // what most networks have, and Winograd's way is for
    s.kernel_height = common ? 3 : Between(1, 5), s.kernel_width = common ? 3 : Between(1, 5);
    s.stride_y = common ? 1 : Between(1, 3), s.stride_x = common ? 1 : Between(1, 3);
    s.low_y = Between(-1, 3), s.low_x = Between(-1, 3);
    const int64_t rows = s.height + s.low_y + Between(-1, 3) - s.kernel_height;
    const int64_t columns = s.width + s.low_x + Between(-1, 3) - s.kernel_width;
    if (rows < 0 || columns < 0) continue;
    s.out_height = rows / s.stride_y + 1, s.out_width = columns / s.stride_x + 1;
    if (!Check(s) || !CheckNorm() || !CheckAttention()) return 1;
    ++done;
  }
  std::printf("%ld shapes\n", static_cast<long>(done));
  return 0;
}
