// What XLA calls: operands are checked here, and the work is done by the widest instruction set that the machine has.

#include "xla/ffi/api/ffi.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <string>
#include <thread>

#include "attention.h"
#include "conv.h"
#include "norm.h"
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

#define FLAGSHIP_RUN(NAME, ...)                                                 \
  try {                                                                         \
    HasAvx512() ? avx512::NAME(__VA_ARGS__) : avx2::NAME(__VA_ARGS__);          \
  } catch (const std::exception& error) {                                       \
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, #NAME ": no memory"); \
  }                                                                             \
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

// Takes the arrays of a call in their order, each of as many numbers as it should have.
template <typename Arrays>
class Taker {
 public:
  explicit Taker(const Arrays& arrays) : arrays_(arrays) {}

  // The next one, or null where it is not there.
  template <ffi::DataType dtype = ffi::F32>
  ffi::NativeType<dtype>* Take(bool there, int64_t count) {
    if (!there) return nullptr;
    auto next = arrays_.template get<ffi::AnyBuffer>(next_++);
    if (next.has_value()) {
      const ffi::AnyBuffer& buffer = Of(*next);
      if (buffer.element_type() == dtype && static_cast<int64_t>(buffer.element_count()) == count) {
        return static_cast<ffi::NativeType<dtype>*>(buffer.untyped_data());
      }
    }
    right_ = false;
    return nullptr;
  }

  // Whether each was what it should be, and none is left.
  bool right() const { return right_ && next_ == arrays_.size(); }

 private:
  static ffi::AnyBuffer& Of(ffi::AnyBuffer& buffer) { return buffer; }
  static ffi::AnyBuffer& Of(ffi::Result<ffi::AnyBuffer>& buffer) { return *buffer; }

  const Arrays& arrays_;
  size_t next_ = 0;
  bool right_ = true;
};

// Arrays come in the order of research/kernels/norm/how.py.
ffi::Error Norm(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t rows, int64_t width,
                int64_t layer, int64_t residual, int64_t scale, int64_t bias, float epsilon) {
  if (rows < 1 || width < 1) return Wrong("norm: no rows, or no columns");
  const NormShape shape{rows, width, layer != 0, epsilon};
  const int64_t all = rows * width;
  Taker taken(args);
  Taker made(rets);
  NormForwardArrays a;
  a.x = taken.Take(true, all);
  a.residual = taken.Take(residual, all);
  a.scale = taken.Take(scale, width);
  a.bias = taken.Take(bias, width);
  a.y = made.Take(true, all);
  a.total = made.Take(residual, all);
  a.mean = made.Take(layer, rows);
  a.inverse = made.Take(true, rows);
  if (!taken.right() || !made.right()) return Wrong("norm: arrays do not belong together");
  FLAGSHIP_RUN(NormForward, shape, a, XlaPool(pool));
}

ffi::Error NormGradients(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t rows,
                         int64_t width, int64_t layer, int64_t total, int64_t scale, int64_t bias, float epsilon) {
  if (rows < 1 || width < 1) return Wrong("norm: no rows, or no columns");
  const NormShape shape{rows, width, layer != 0, epsilon};
  const int64_t all = rows * width;
  Taker taken(args);
  Taker made(rets);
  NormBackwardArrays a;
  a.x = taken.Take(true, all);
  a.mean = taken.Take(layer, rows);
  a.inverse = taken.Take(true, rows);
  a.scale = taken.Take(scale, width);
  a.to_y = taken.Take(true, all);
  a.to_total = taken.Take(total, all);
  a.to_x = made.Take(true, all);
  a.to_scale = made.Take(scale, width);
  a.to_bias = made.Take(bias, width);
  if (!taken.right() || !made.right()) return Wrong("norm: arrays do not belong together");
  FLAGSHIP_RUN(NormBackward, shape, a, XlaPool(pool));
}

// The sizes of attention, or what is wrong with them.
ffi::Error AttentionOf(Numbers sizes, int64_t causal, int64_t window, float softcap, float scale, AttentionShape& s) {
  if (sizes.size() != 6 || *std::min_element(sizes.begin(), sizes.end()) < 1) return Wrong("attention: sizes below 1");
  s = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], causal != 0, window, softcap, scale};
  if (s.heads % s.groups != 0 || window < 0) return Wrong("attention: heads that share no keys, or a negative window");
  return ffi::Error::Success();
}

ffi::Error Attention(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, Numbers sizes,
                     int64_t causal, int64_t window, int64_t segments, float softcap, float scale) {
  AttentionShape s;
  if (auto error = AttentionOf(sizes, causal, window, softcap, scale, s); error.failure()) return error;
  const int64_t rows = s.batch * s.length * s.heads, keys = s.batch * s.keys * s.groups;
  Taker taken(args);
  Taker made(rets);
  AttentionForwardArrays a;
  a.q = taken.Take(true, rows * s.width);
  a.k = taken.Take(true, keys * s.width);
  a.v = taken.Take(true, keys * s.width);
  a.query_segments = taken.Take<ffi::S32>(segments, s.batch * s.length);
  a.key_segments = taken.Take<ffi::S32>(segments, s.batch * s.keys);
  a.output = made.Take(true, rows * s.width);
  a.sums = made.Take(true, rows);
  if (!taken.right() || !made.right()) return Wrong("attention: arrays do not belong together");
  FLAGSHIP_RUN(AttentionForward, s, a, XlaPool(pool));
}

ffi::Error AttentionGradients(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, Numbers sizes,
                              int64_t causal, int64_t window, int64_t segments, float softcap, float scale) {
  AttentionShape s;
  if (auto error = AttentionOf(sizes, causal, window, softcap, scale, s); error.failure()) return error;
  const int64_t rows = s.batch * s.length * s.heads, keys = s.batch * s.keys * s.groups;
  Taker taken(args);
  Taker made(rets);
  AttentionBackwardArrays a;
  a.q = taken.Take(true, rows * s.width);
  a.k = taken.Take(true, keys * s.width);
  a.v = taken.Take(true, keys * s.width);
  a.query_segments = taken.Take<ffi::S32>(segments, s.batch * s.length);
  a.key_segments = taken.Take<ffi::S32>(segments, s.batch * s.keys);
  a.output = taken.Take(true, rows * s.width);
  a.sums = taken.Take(true, rows);
  a.to_output = taken.Take(true, rows * s.width);
  a.to_sums = taken.Take(true, rows);
  a.to_q = made.Take(true, rows * s.width);
  a.to_k = made.Take(true, keys * s.width);
  a.to_v = made.Take(true, keys * s.width);
  if (!taken.right() || !made.right()) return Wrong("attention: arrays do not belong together");
  FLAGSHIP_RUN(AttentionBackward, s, a, XlaPool(pool));
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

#define FLAGSHIP_NORM_HANDLER(NAME, FUNCTION, MORE)         \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(NAME, flagship::FUNCTION,   \
                                ffi::Ffi::Bind()            \
                                    .Ctx<ffi::ThreadPool>() \
                                    .RemainingArgs()        \
                                    .RemainingRets()        \
                                    .Attr<int64_t>("rows")  \
                                    .Attr<int64_t>("width") \
                                    .Attr<int64_t>("layer") \
                                    .Attr<int64_t>(MORE)    \
                                    .Attr<int64_t>("scale") \
                                    .Attr<int64_t>("bias")  \
                                    .Attr<float>("epsilon"))

FLAGSHIP_NORM_HANDLER(flagship_norm, Norm, "residual");
FLAGSHIP_NORM_HANDLER(flagship_norm_gradients, NormGradients, "total");

#define FLAGSHIP_ATTENTION_HANDLER(NAME, FUNCTION)                    \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(NAME, flagship::FUNCTION,             \
                                ffi::Ffi::Bind()                      \
                                    .Ctx<ffi::ThreadPool>()           \
                                    .RemainingArgs()                  \
                                    .RemainingRets()                  \
                                    .Attr<flagship::Numbers>("sizes") \
                                    .Attr<int64_t>("causal")          \
                                    .Attr<int64_t>("window")          \
                                    .Attr<int64_t>("segments")        \
                                    .Attr<float>("softcap")           \
                                    .Attr<float>("scale"))

FLAGSHIP_ATTENTION_HANDLER(flagship_attention, Attention);
FLAGSHIP_ATTENTION_HANDLER(flagship_attention_gradients, AttentionGradients);

// The widest instruction set that the machine has, of those that were compiled for; "" if it has none of them.
extern "C" const char* flagship_instructions() {
  return flagship::HasAvx512() ? "avx512" : flagship::HasAvx2() ? "avx2" : "";
}

#pragma GCC visibility pop
