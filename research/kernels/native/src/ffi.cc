// What XLA calls: operands are checked here, and the work is done by the widest instruction set that the machine has.

#include "xla/ffi/api/ffi.h"

#include <atomic>
#include <exception>
#include <string>
#include <thread>

#include "conv.h"
#include "pool.h"

namespace ffi = xla::ffi;

namespace flagship {
namespace {

// XLA's threads, and the calling one. It never waits for a task that no thread has begun, so a pool whose threads all
// wait here cannot be stuck.
class XlaPool : public Pool {
 public:
  explicit XlaPool(ffi::ThreadPool& pool) : pool_(pool), threads_(std::max<int64_t>(1, pool.num_threads())) {}

  int64_t threads() const override { return threads_; }

  void Work(int64_t count, const Worker& worker) const override {
    struct State {
      const Worker* worker;
      int64_t count;
      std::atomic<int64_t> next{0};
      std::atomic<int> inside{0};  // workers that may still look at what the caller has
      std::atomic<bool> closed{false}, failed{false};

      void Enter() {
        inside.fetch_add(1);
        if (!closed) {
          try {
            (*worker)([this]() -> int64_t {
              const int64_t number = failed ? count : next.fetch_add(1);
              return number < count ? number : -1;
            });
          } catch (...) {
            failed = true;
          }
        }
        inside.fetch_sub(1);
      }
    };
    auto state = std::make_shared<State>();
    state->worker = &worker;
    state->count = count;
    for (int64_t helper = 1; helper < std::min(threads_, count); ++helper) {
      auto enter = [state] { state->Enter(); };
      pool_.Schedule(std::move(enter));
    }
    state->Enter();
    // No number is left. A helper that comes late finds the door closed and never looks at the worker.
    state->closed = true;
    for (int turn = 0; state->inside > 0; ++turn) {
      if (turn > 1000) std::this_thread::yield();
    }
    if (state->failed) throw std::bad_alloc();
  }

 private:
  ffi::ThreadPool& pool_;
  int64_t threads_;
};

bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
}

bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

using Image = ffi::BufferR4<ffi::F32>;
using Numbers = ffi::Span<const int64_t>;

ffi::Error Wrong(const std::string& what) { return ffi::Error(ffi::ErrorCode::kInvalidArgument, what); }

// The shape that x (B, H, W, C), kernel (h, w, C, O) and y (B, H', W', O) have together, or what is wrong with them.
ffi::Error ShapeOf(ffi::Span<const int64_t> x, ffi::Span<const int64_t> kernel, ffi::Span<const int64_t> y,
                   Numbers strides, Numbers lows, ConvShape& shape) {
  if (strides.size() != 2 || lows.size() != 2) return Wrong("conv: strides and pads are of two axes");
  shape = {x[0], x[1], x[2],       x[3],       kernel[0], kernel[1], kernel[3],
           y[1], y[2], strides[0], strides[1], lows[0],   lows[1]};
  if (kernel[2] != x[3] || y[0] != x[0] || y[3] != kernel[3]) return Wrong("conv: channels or examples differ");
  if (strides[0] < 1 || strides[1] < 1) return Wrong("conv: a stride below 1");
  for (const auto& each : {x, kernel, y}) {
    for (size_t axis = 0; axis < 4; ++axis) {
      if (each[axis] < 1) return Wrong("conv: an empty operand");
    }
  }
  return ffi::Error::Success();
}

#define FLAGSHIP_RUN(NAME, ...)                                               \
  try {                                                                       \
    HasAvx512() ? avx512::NAME(__VA_ARGS__) : avx2::NAME(__VA_ARGS__);        \
  } catch (const std::exception& error) {                                     \
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "conv: no memory"); \
  }                                                                           \
  return ffi::Error::Success()

ffi::Error Forward(ffi::ThreadPool pool, Image x, Image kernel, ffi::Result<Image> y, Numbers strides, Numbers lows) {
  ConvShape shape;
  if (auto error = ShapeOf(x.dimensions(), kernel.dimensions(), y->dimensions(), strides, lows, shape); error.failure())
    return error;
  FLAGSHIP_RUN(ConvForward, shape, x.typed_data(), kernel.typed_data(), y->typed_data(), XlaPool(pool));
}

ffi::Error InputGradient(ffi::ThreadPool pool, Image g, Image kernel, ffi::Result<Image> x, Numbers strides,
                         Numbers lows) {
  ConvShape shape;
  if (auto error = ShapeOf(x->dimensions(), kernel.dimensions(), g.dimensions(), strides, lows, shape); error.failure())
    return error;
  FLAGSHIP_RUN(ConvInputGradient, shape, g.typed_data(), kernel.typed_data(), x->typed_data(), XlaPool(pool));
}

ffi::Error WeightGradient(ffi::ThreadPool pool, Image x, Image g, ffi::Result<Image> kernel, Numbers strides,
                          Numbers lows) {
  ConvShape shape;
  if (auto error = ShapeOf(x.dimensions(), kernel->dimensions(), g.dimensions(), strides, lows, shape); error.failure())
    return error;
  FLAGSHIP_RUN(ConvWeightGradient, shape, x.typed_data(), g.typed_data(), kernel->typed_data(), XlaPool(pool));
}

}  // namespace
}  // namespace flagship

#pragma GCC visibility push(default)

#define FLAGSHIP_HANDLER(NAME, FUNCTION)                                \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(NAME, flagship::FUNCTION,               \
                                ffi::Ffi::Bind()                        \
                                    .Ctx<ffi::ThreadPool>()             \
                                    .Arg<flagship::Image>()             \
                                    .Arg<flagship::Image>()             \
                                    .Ret<flagship::Image>()             \
                                    .Attr<flagship::Numbers>("strides") \
                                    .Attr<flagship::Numbers>("lows"))

FLAGSHIP_HANDLER(flagship_conv_forward, Forward);
FLAGSHIP_HANDLER(flagship_conv_input_gradient, InputGradient);
FLAGSHIP_HANDLER(flagship_conv_weight_gradient, WeightGradient);

// The widest instruction set that the machine has, of those that were compiled for; "" if it has none of them.
extern "C" const char* flagship_instructions() {
  return flagship::HasAvx512() ? "avx512" : flagship::HasAvx2() ? "avx2" : "";
}

#pragma GCC visibility pop
