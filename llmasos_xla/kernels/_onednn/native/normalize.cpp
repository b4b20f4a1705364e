#include "normalize.h"

#include <algorithm>
#include <cmath>

#include "pool.h"

namespace normalize {
namespace {

constexpr int kVectors = 4;                // of channels at a time, their coefficients in registers
constexpr int64_t kBlockElements = 16384;  // rows that stay in the first caches between two passes
constexpr int64_t kLeastElements = 8192;   // of a thread

using namespace lanes;

// The rows of a part, and the blocks of them. No constructor: clang does not emit one that clones of a function call.
struct Rows {
  int64_t begin, end, block;
};

INLINE Rows rows_of(const Shape& s, int64_t part, int64_t parts) {
  return {s.rows * part / parts, s.rows * (part + 1) / parts, std::max<int64_t>(8, kBlockElements / s.channels)};
}

// From the last block to the first: what a pass before has read last is in the caches still.
INLINE int64_t last_block(const Rows& r) { return r.begin + (r.end - r.begin - 1) / r.block * r.block; }

int64_t parts_of(const Shape& s) {
  return std::clamp<int64_t>(s.rows * s.channels / kLeastElements, 1, std::min<int64_t>(pool::threads(), s.rows));
}

// Memory of [channels] each, in a call's scratch.
struct Channels {
  float* memory;
  int64_t size;
  float* operator[](int64_t index) const { return memory + index * size; }
};

// What x - mean is multiplied by, and what is added then: the same bits forward and, for the ReLU's mask, backward.
template <typename Given>
void coefficients(const Given& given, const Channels& rstd, const Channels& factor, const Channels& offset) {
  for (int64_t i = 0; i < given.shape.channels; i++) {
    rstd[0][i] = 1.0f / std::sqrt(given.variance[i] + given.epsilon);
    factor[0][i] = given.scale ? given.scale[i] * rstd[0][i] : rstd[0][i];
    offset[0][i] = given.offset ? given.offset[i] : 0.0f;
  }
}

template <int V>
INLINE void load_group(const float* from, Lanes (&to)[V]) {
  for (int i = 0; i < V; i++) load(from + i * kLanes, to[i]);
}

// Calls body.run<V>(channel) for each group of V vectors of channels, kVectors or one.
template <typename Body>
INLINE void each_group(int64_t channels, Body body) {
  int64_t c = 0;
  for (; c + kVectors * kLanes <= channels; c += kVectors * kLanes) body.template run<kVectors>(c);
  for (; c < channels; c += kLanes) body.template run<1>(c);
}

// Forward.

struct ForwardJob {
  const Forward& given;
  int64_t parts;
  Channels rstd, factor, offset, mean, squares;  // mean and squares: of each part, about its own mean
};

template <typename T>
struct Moments {  // adds a block of rows to a part's mean and sum of squares
  const T* x;
  int64_t channels, rows, before;  // rows that mean and squares know already
  float *mean, *squares;

  template <int V>
  INLINE void run(int64_t c) {
    const float share = 1.0f / static_cast<float>(rows);
    Lanes sum[V], square[V], v;
    for (int i = 0; i < V; i++) sum[i] = square[i] = Lanes{};
    for (int64_t r = 0; r < rows; r++) {
#pragma GCC unroll 4
      for (int i = 0; i < V; i++) {
        load(x + r * channels + c + i * kLanes, v);
        sum[i] += v;
      }
    }
    for (int i = 0; i < V; i++) sum[i] *= share;
    for (int64_t r = 0; r < rows; r++) {
#pragma GCC unroll 4
      for (int i = 0; i < V; i++) {
        load(x + r * channels + c + i * kLanes, v);
        const Lanes d = v - sum[i];
        square[i] += d * d;
      }
    }
    // Chan, Golub and LeVeque 1983: the moments of a union.
    const auto all = static_cast<float>(before + rows);
    const float part = static_cast<float>(rows) / all, between = static_cast<float>(before) * part;
    for (int i = 0; i < V; i++) {
      float *m = mean + c + i * kLanes, *q = squares + c + i * kLanes;
      Lanes mean_before, squares_before;
      load(m, mean_before);
      load(q, squares_before);
      const Lanes d = sum[i] - mean_before;
      store(m, mean_before + d * part);
      store(q, squares_before + square[i] + d * (d * between));
    }
  }
};

template <typename T>
struct Normalize {
  const T *x, *residual;
  T* y;
  int64_t channels, rows;
  const float *mean, *factor, *offset;
  bool relu;

  template <int V>
  INLINE void run(int64_t c) {
    Lanes m[V], f[V], o[V];
    load_group(mean + c, m);
    load_group(factor + c, f);
    load_group(offset + c, o);
    for (int64_t r = 0; r < rows; r++) {
#pragma GCC unroll 4
      for (int i = 0; i < V; i++) {
        const int64_t at = r * channels + c + i * kLanes;
        Lanes v, more;
        load(x + at, v);
        v = (v - m[i]) * f[i] + o[i];
        if (residual) {
          load(residual + at, more);
          v += more;
        }
        if (relu) v = v <= 0 ? Lanes{} : v;  // NaN stays
        store(y + at, v);
      }
    }
  }
};

template <typename T>
INLINE void moments_of_part(const ForwardJob& job, int64_t part) {
  const Shape& s = job.given.shape;
  const Rows rows = rows_of(s, part, job.parts);
  float *mean = job.mean[part], *squares = job.squares[part];
  std::fill_n(mean, s.channels, 0.0f);
  std::fill_n(squares, s.channels, 0.0f);
  auto x = static_cast<const T*>(job.given.x);
  for (int64_t r = rows.begin; r < rows.end; r += rows.block)
    each_group(s.channels, Moments<T>{x + r * s.channels, s.channels, std::min(rows.block, rows.end - r),
                                      r - rows.begin, mean, squares});
}

template <typename T>
INLINE void normalize_part(const ForwardJob& job, int64_t part) {
  const Forward& g = job.given;
  const Shape& s = g.shape;
  const Rows rows = rows_of(s, part, job.parts);
  for (int64_t r = last_block(rows); r >= rows.begin; r -= rows.block) {
    const int64_t at = r * s.channels;
    each_group(s.channels, Normalize<T>{static_cast<const T*>(g.x) + at,
                                        g.residual ? static_cast<const T*>(g.residual) + at : nullptr,
                                        static_cast<T*>(g.y) + at, s.channels, std::min(rows.block, rows.end - r),
                                        g.mean, job.factor[0], job.offset[0], s.relu != 0});
  }
}

CLONES void take_moments(const ForwardJob& job, int64_t part) {
  if (job.given.shape.dtype == kFloat32) return moments_of_part<float>(job, part);
  moments_of_part<uint16_t>(job, part);
}

CLONES void apply(const ForwardJob& job, int64_t part) {
  if (job.given.shape.dtype == kFloat32) return normalize_part<float>(job, part);
  normalize_part<uint16_t>(job, part);
}

// Backward.

struct BackwardJob {
  const Backward& given;
  int64_t parts;
  Channels rstd, factor, offset, shift, slope, sums, products;  // sums, products: of dy and dy (x - mean), by part
};

// dy where the ReLU let it through.
template <typename T>
struct Masked {
  const T *x, *y, *dy;
  bool relu;

  INLINE void at(int64_t i, const Lanes& centred, const Lanes& factor, const Lanes& offset, Lanes& g) const {
    load(dy + i, g);
    if (!relu) return;
    Lanes out;
    if (y) {
      load(y + i, out);
    } else {
      out = centred * factor + offset;
    }
    g = out > 0 ? g : Lanes{};
  }
};

template <typename T>
struct Sums {
  Masked<T> masked;
  T* dresidual;
  int64_t channels, rows;
  const float *mean, *factor, *offset;
  float *sums, *products;

  template <int V>
  INLINE void run(int64_t c) {
    Lanes m[V], f[V], o[V], sum[V], product[V];
    load_group(mean + c, m);
    load_group(factor + c, f);
    load_group(offset + c, o);
    for (int i = 0; i < V; i++) sum[i] = product[i] = Lanes{};
    for (int64_t r = 0; r < rows; r++) {
#pragma GCC unroll 4
      for (int i = 0; i < V; i++) {
        const int64_t at = r * channels + c + i * kLanes;
        Lanes x, g;
        load(masked.x + at, x);
        x -= m[i];
        masked.at(at, x, f[i], o[i], g);
        if (dresidual) store(dresidual + at, g);
        sum[i] += g;
        product[i] += g * x;
      }
    }
    for (int i = 0; i < V; i++) {
      Lanes before;
      load(sums + c + i * kLanes, before);
      store(sums + c + i * kLanes, before + sum[i]);
      load(products + c + i * kLanes, before);
      store(products + c + i * kLanes, before + product[i]);
    }
  }
};

template <typename T>
struct Gradient {  // dx = factor dy - shift - slope (x - mean)
  Masked<T> masked;
  T* dx;
  int64_t channels, rows;
  const float *mean, *factor, *offset, *shift, *slope;

  template <int V>
  INLINE void run(int64_t c) {
    Lanes m[V], f[V], o[V], a[V], b[V];
    load_group(mean + c, m);
    load_group(factor + c, f);
    load_group(offset + c, o);
    load_group(shift + c, a);
    load_group(slope + c, b);
    for (int64_t r = 0; r < rows; r++) {
#pragma GCC unroll 4
      for (int i = 0; i < V; i++) {
        const int64_t at = r * channels + c + i * kLanes;
        Lanes x, g;
        load(masked.x + at, x);
        x -= m[i];
        masked.at(at, x, f[i], o[i], g);
        store(dx + at, f[i] * g - a[i] - b[i] * x);
      }
    }
  }
};

template <typename T>
INLINE Masked<T> masked_from(const Backward& g, int64_t at, bool again) {
  auto x = static_cast<const T*>(g.x) + at;
  const bool relu = g.shape.relu != 0;
  if (!relu || !g.shape.residual) return {x, nullptr, static_cast<const T*>(g.dy) + at, relu};
  // The first pass writes what it masks, the second reads that.
  if (again) return {x, nullptr, static_cast<const T*>(g.dresidual) + at, false};
  return {x, static_cast<const T*>(g.y) + at, static_cast<const T*>(g.dy) + at, true};
}

template <typename T>
INLINE void sum_part(const BackwardJob& job, int64_t part) {
  const Backward& g = job.given;
  const Shape& s = g.shape;
  const Rows rows = rows_of(s, part, job.parts);
  float *sums = job.sums[part], *products = job.products[part];
  std::fill_n(sums, s.channels, 0.0f);
  std::fill_n(products, s.channels, 0.0f);
  for (int64_t r = rows.begin; r < rows.end; r += rows.block) {
    const int64_t at = r * s.channels;
    each_group(s.channels,
               Sums<T>{masked_from<T>(g, at, false), g.dresidual ? static_cast<T*>(g.dresidual) + at : nullptr,
                       s.channels, std::min(rows.block, rows.end - r), g.mean, job.factor[0], job.offset[0], sums,
                       products});
  }
}

template <typename T>
INLINE void gradient_part(const BackwardJob& job, int64_t part) {
  const Backward& g = job.given;
  const Shape& s = g.shape;
  const Rows rows = rows_of(s, part, job.parts);
  for (int64_t r = last_block(rows); r >= rows.begin; r -= rows.block) {
    const int64_t at = r * s.channels;
    each_group(s.channels, Gradient<T>{masked_from<T>(g, at, true), static_cast<T*>(g.dx) + at, s.channels,
                                       std::min(rows.block, rows.end - r), g.mean, job.factor[0], job.offset[0],
                                       job.shift[0], job.slope[0]});
  }
}

CLONES void take_sums(const BackwardJob& job, int64_t part) {
  if (job.given.shape.dtype == kFloat32) return sum_part<float>(job, part);
  sum_part<uint16_t>(job, part);
}

CLONES void differentiate(const BackwardJob& job, int64_t part) {
  if (job.given.shape.dtype == kFloat32) return gradient_part<float>(job, part);
  gradient_part<uint16_t>(job, part);
}

template <typename Job, void (*Part)(const Job&, int64_t)>
void run(void* data) {
  auto& job = *static_cast<Job*>(data);
  Part(job, pool::part());
}

}  // namespace

void forward(const Forward& given) {
  const Shape& s = given.shape;
  const int64_t c = s.channels, most = pool::threads();
  float* at = given.scratch;
  ForwardJob job{given, parts_of(s), {at, c}, {at + c, c}, {at + 2 * c, c}, {at + 3 * c, c}, {at + (3 + most) * c, c}};
  pool::in_parallel(run<ForwardJob, take_moments>, &job, job.parts);
  float *mean = job.mean[0], *squares = job.squares[0];  // of all parts up to p
  for (int64_t p = 1; p < job.parts; p++) {
    const Rows of = rows_of(s, p, job.parts);
    const float part = static_cast<float>(of.end - of.begin) / static_cast<float>(of.end);
    const float between = static_cast<float>(of.begin) * part;
    for (int64_t i = 0; i < c; i++) {
      const float d = job.mean[p][i] - mean[i];
      mean[i] += d * part;
      squares[i] += job.squares[p][i] + d * (d * between);
    }
  }
  for (int64_t i = 0; i < c; i++) {
    given.mean[i] = mean[i];
    given.variance[i] = squares[i] / static_cast<float>(s.rows);
  }
  coefficients(given, job.rstd, job.factor, job.offset);
  pool::in_parallel(run<ForwardJob, apply>, &job, job.parts);
}

void backward(const Backward& given) {
  const Shape& s = given.shape;
  const int64_t c = s.channels, most = pool::threads();
  float* at = given.scratch;
  BackwardJob job{given,           parts_of(s),     {at, c},         {at + c, c},     {at + 2 * c, c},
                  {at + 3 * c, c}, {at + 4 * c, c}, {at + 5 * c, c}, {at + (5 + most) * c, c}};
  coefficients(given, job.rstd, job.factor, job.offset);
  pool::in_parallel(run<BackwardJob, take_sums>, &job, job.parts);
  const auto rows = static_cast<double>(s.rows);
  for (int64_t i = 0; i < c; i++) {
    double sum = 0, product = 0;
    for (int64_t p = 0; p < job.parts; p++) {
      sum += job.sums[p][i];
      product += job.products[p][i];
    }
    const double rstd = job.rstd[0][i], dscale = product * rstd;
    if (given.doffset) given.doffset[i] = static_cast<float>(sum);
    if (given.dscale) given.dscale[i] = static_cast<float>(dscale);
    job.shift[0][i] = static_cast<float>(job.factor[0][i] * sum / rows);
    job.slope[0][i] = static_cast<float>(job.factor[0][i] * dscale / rows * rstd);
  }
  pool::in_parallel(run<BackwardJob, differentiate>, &job, job.parts);
}

}  // namespace normalize
