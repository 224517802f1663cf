// The C++ kernels on random shapes, against sums in double and with their results poisoned with NaN first; and the same
// bits from one thread and from five. Compiled with AddressSanitizer by test_native.py, for each instruction set.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "conv.h"

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
    if (!Check(s)) return 1;
    ++done;
  }
  std::printf("%ld shapes\n", static_cast<long>(done));
  return 0;
}
