#include "depthwise.h"

#include <algorithm>

#include "pool.h"

namespace depthwise {
namespace {

constexpr int kTaps = 8;  // columns of the kernel whose sums stay in registers together

using namespace lanes;

struct Job {
  const Geometry& g;
  const void* x;
  const void* dy;
  float* sums;  // [parts, rows, columns, channels]
};

// The outputs of one row whose input column lies inside of the picture: first and past the last.
void inside(const Geometry& g, int64_t column, int64_t* from, int64_t* to) {
  const int64_t offset = column * g.dilation_w - g.low_w;
  const int64_t last = g.width - 1 - offset;
  *from = offset >= 0 ? 0 : (-offset + g.stride_w - 1) / g.stride_w;
  *to = last < 0 ? 0 : std::min(g.out_width, last / g.stride_w + 1);
}

// Adds one row of outputs to the sums of `Taps` columns of the kernel, for the channels of one vector.
template <int Taps, typename T>
INLINE void row(const Geometry& g, const T* x, const T* dy, int64_t first, float* sums) {
  const int64_t c = g.channels;
  int64_t from[Taps], to[Taps], all_from = 0, all_to = g.out_width;
  for (int t = 0; t < Taps; t++) {
    inside(g, first + t, &from[t], &to[t]);
    all_from = std::max(all_from, from[t]);
    all_to = std::min(all_to, to[t]);
  }
  all_to = std::max(all_to, all_from);
  Lanes acc[Taps], d, v;
#pragma GCC unroll 8
  for (int t = 0; t < Taps; t++) load(sums + t * c, acc[t]);
  const int64_t step = g.dilation_w * c;
  for (int64_t o = all_from; o < all_to; o++) {
    load(dy + o * c, d);
    const T* at = x + (o * g.stride_w + first * g.dilation_w - g.low_w) * c;
#pragma GCC unroll 8
    for (int t = 0; t < Taps; t++) {
      load(at + t * step, v);
      acc[t] += d * v;
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < Taps; t++) {  // the outputs at the borders, which not all columns have
    const int64_t offset = (first + t) * g.dilation_w - g.low_w;
    for (int64_t o = from[t]; o < to[t]; o++) {
      if (o == all_from && all_from < all_to) o = all_to;
      if (o >= to[t]) break;
      load(dy + o * c, d);
      load(x + (o * g.stride_w + offset) * c, v);
      acc[t] += d * v;
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < Taps; t++) store(sums + t * c, acc[t]);
}

template <int Taps, typename T>
INLINE void taps(const Geometry& g, const T* x, const T* dy, int64_t first, float* sums) {
  if (g.columns - first >= Taps) {
    row<Taps, T>(g, x, dy, first, sums);
  } else if constexpr (Taps > 1) {
    taps<Taps - 1, T>(g, x, dy, first, sums);
  }
}

// The part of one thread: rows of outputs of all pictures, dealt out evenly, and all channels.
template <typename T>
INLINE void part_of(const Job& job, int64_t index, int64_t parts) {
  const Geometry& g = job.g;
  const int64_t c = g.channels, size = g.rows * g.columns * c;
  float* sums = job.sums + index * size;
  std::fill_n(sums, size, 0.0f);
  const int64_t rows = g.batch * g.out_height;
  const int64_t begin = rows * index / parts, end = rows * (index + 1) / parts;
  for (int64_t channel = 0; channel + kLanes <= c; channel += kLanes) {
    for (int64_t r = begin; r < end; r++) {
      const int64_t n = r / g.out_height, o = r % g.out_height;
      const T* dy = static_cast<const T*>(job.dy) + r * g.out_width * c + channel;
      for (int64_t i = 0; i < g.rows; i++) {
        const int64_t y = o * g.stride_h - g.low_h + i * g.dilation_h;
        if (y < 0 || y >= g.height) continue;
        const T* x = static_cast<const T*>(job.x) + (n * g.height + y) * g.width * c + channel;
        for (int64_t j = 0; j < g.columns; j += kTaps)
          taps<kTaps, T>(g, x, dy, j, sums + (i * g.columns + j) * c + channel);
      }
    }
  }
  const int64_t rest = c / kLanes * kLanes;
  for (int64_t r = begin; r < end && rest < c; r++) {
    const int64_t n = r / g.out_height, o = r % g.out_height;
    for (int64_t i = 0; i < g.rows; i++) {
      const int64_t y = o * g.stride_h - g.low_h + i * g.dilation_h;
      if (y < 0 || y >= g.height) continue;
      for (int64_t j = 0; j < g.columns; j++) {
        int64_t from, to;
        inside(g, j, &from, &to);
        const int64_t offset = j * g.dilation_w - g.low_w;
        for (int64_t q = from; q < to; q++) {
          const T* dy = static_cast<const T*>(job.dy) + (r * g.out_width + q) * c;
          const T* x = static_cast<const T*>(job.x) + ((n * g.height + y) * g.width + q * g.stride_w + offset) * c;
          for (int64_t k = rest; k < c; k++) sums[(i * g.columns + j) * c + k] += number(dy[k]) * number(x[k]);
        }
      }
    }
  }
}

CLONES void part(const Job& job, int64_t index, int64_t parts) {
  if (job.g.dtype == kFloat32) return part_of<float>(job, index, parts);
  part_of<uint16_t>(job, index, parts);
}

void run_part(void* data) { part(*static_cast<const Job*>(data), pool::part(), pool::parts()); }

}  // namespace

void kernel_gradient(const Geometry& g, const void* x, const void* dy, void* dw, float* scratch) {
  Job job{g, x, dy, scratch};
  const int parts = pool::threads();
  pool::in_parallel(run_part, &job, parts);
  const int64_t size = g.rows * g.columns * g.channels;
  for (int64_t k = 0; k < size; k++) {
    float sum = scratch[k];
    for (int p = 1; p < parts; p++) sum += scratch[p * size + k];
    if (g.dtype == kFloat32) {
      put(static_cast<float*>(dw) + k, sum);
    } else {
      put(static_cast<uint16_t*>(dw) + k, sum);
    }
  }
}

}  // namespace depthwise
