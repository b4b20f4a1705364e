#include "lstm.h"

#include <algorithm>

#include "lanes.h"
#include "pool.h"

// Compiled for AVX-512 alone, and called (own_lstm.py) only where it is there: 24 sums and 4 columns of weights stay in
// its 32 registers.
#define AVX512 __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma")))

namespace lstm {
namespace {

using namespace lanes;

static_assert(kUnits == kLanes, "the units of a vector");

constexpr int kRows = 6;       // of the batch at a time
constexpr int kGates = 4;
constexpr int64_t kLeastWork = 65536;  // multiplications of a thread in a step

INLINE void exponential(const Lanes& x, Lanes& y) {  // of x <= 0; Cephes' polynomial, 1 ulp
  const Lanes low = Lanes{} - 87.0f;
  const Lanes v = x < low ? low : x;
  const Lanes n = __builtin_convertvector(__builtin_convertvector(v * 1.44269504f - 0.5f, Signed), Lanes);
  const Lanes r = (v - n * 0.693359375f) + n * 2.12194440e-4f;
  Lanes p = Lanes{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Signed scale = (__builtin_convertvector(n, Signed) + 127) << 23;
  Lanes power;
  std::memcpy(&power, &scale, sizeof power);
  y = p * power;
  y = x < low ? Lanes{} : y;
  y = x != x ? x : y;
}

INLINE void sigmoid(const Lanes& x, Lanes& y) {
  const Lanes negative = x < 0 ? x : -x;
  Lanes e;
  exponential(negative, e);
  const Lanes s = 1.0f / (1.0f + e);
  y = x < 0 ? e * s : s;
}

INLINE void hyperbolic_tangent(const Lanes& x, Lanes& y) {
  const Lanes size = x < 0 ? -x : x;
  const Lanes square = x * x;
  Lanes near = Lanes{} - 5.70498872745e-3f;  // Cephes again, below 0.625
  near = near * square + 2.06390887954e-2f;
  near = near * square - 5.37397155531e-2f;
  near = near * square + 1.33314422036e-1f;
  near = near * square - 3.33332819422e-1f;
  near = near * square * x + x;
  Lanes e;
  exponential(-2.0f * size, e);
  const Lanes far = (1.0f - e) / (1.0f + e);
  y = size < 0.625f ? near : x < 0 ? -far : far;
}

// Adds rows [k of them] times weights to sums[R][V]. Element k of row r is rows[r * row_step + k]; vector v of weight
// row k is w[k * w_step + v * v_step].
template <int R, int V>
INLINE void multiply(const float* rows, int64_t row_step, const float* w, int64_t w_step, int64_t v_step, int64_t k,
                     Lanes (&sums)[R][V]) {
  for (int64_t i = 0; i < k; i++) {
    Lanes b[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) load(w + i * w_step + v * v_step, b[v]);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      const float a = rows[r * row_step + i];
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sums[r][v] += a * b[v];
    }
  }
}

// Calls body.run<R>(row) for groups of at most kRows rows.
template <typename Body>
INLINE void each_rows(int64_t rows, Body body) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) body.template run<kRows>(r);
  switch (rows - r) {
    case 5: return body.template run<5>(r);
    case 4: return body.template run<4>(r);
    case 3: return body.template run<3>(r);
    case 2: return body.template run<2>(r);
    case 1: return body.template run<1>(r);
    default: return;
  }
}

int64_t parts_of(const Shape& s, int64_t k) {
  const int64_t most = std::min<int64_t>(pool::threads(), s.hidden / kUnits);
  return std::clamp<int64_t>(s.batch * k * kGates * s.hidden / kLeastWork, 1, most);
}

struct Part {
  int64_t begin, end;  // units
  explicit Part(const Shape& s) {
    const int64_t index = pool::part(), parts = pool::parts(), blocks = s.hidden / kUnits;
    begin = blocks * index / parts * kUnits;
    end = blocks * (index + 1) / parts * kUnits;
  }
};

int64_t step_at(const Shape& s, int64_t number) { return s.reverse ? s.time - 1 - number : number; }

// Forward.

// Where the weights of one vector of units are: of row k and gate g at [k * w_step + g * v_step].
struct Weights {
  const float *input, *recurrent;
  int64_t w_step, v_step;
};

struct Projection {  // the products of all steps' input, for the units of one vector; rows are steps of the batch
  const Forward& f;
  Weights w;
  int64_t unit;

  template <int R>
  INLINE void run(int64_t row) {
    const Shape& s = f.shape;
    Lanes sums[R][kGates];
    for (int g = 0; g < kGates; g++) {
      Lanes bias;
      load(f.bias + g * s.hidden + unit, bias);
      for (int r = 0; r < R; r++) sums[r][g] = bias;
    }
    multiply<R, kGates>(f.x + row * s.cin, s.cin, w.input, w.w_step, w.v_step, s.cin, sums);
    for (int r = 0; r < R; r++)
      for (int g = 0; g < kGates; g++) store(f.projected + ((row + r) * kGates + g) * s.hidden + unit, sums[r][g]);
  }
};

struct Cell {  // one step of some rows and the units of one vector
  const Forward& f;
  Weights w;
  int64_t t, before;  // the step, and the one before it or -1
  int64_t unit;

  template <int R>
  INLINE void run(int64_t row) {
    const Shape& s = f.shape;
    const int64_t n = s.hidden, at = row * s.time + t;
    Lanes sums[R][kGates];
    for (int g = 0; g < kGates; g++) {
      Lanes bias;
      load(f.bias + g * n + unit, bias);
      for (int r = 0; r < R; r++) {
        sums[r][g] = bias;
        if (f.projected) load(f.projected + ((at + r * s.time) * kGates + g) * n + unit, sums[r][g]);
      }
    }
    if (!f.projected) multiply<R, kGates>(f.x + at * s.cin, s.time * s.cin, w.input, w.w_step, w.v_step, s.cin, sums);
    if (before >= 0) {
      const float* h = f.y + (row * s.time + before) * n;
      multiply<R, kGates>(h, s.time * n, w.recurrent, w.w_step, w.v_step, n, sums);
    } else if (f.h0) {
      multiply<R, kGates>(f.h0 + row * n, n, w.recurrent, w.w_step, w.v_step, n, sums);
    }
    for (int r = 0; r < R; r++) {
      Lanes in, forget, fresh, out, c = {}, squashed;
      sigmoid(sums[r][0], in);
      sigmoid(sums[r][1], forget);
      hyperbolic_tangent(sums[r][2], fresh);
      sigmoid(sums[r][3], out);
      float* state = f.c + (row + r) * n + unit;
      if (before >= 0) {
        load(state, c);
      } else if (f.c0) {
        load(f.c0 + (row + r) * n + unit, c);
      }
      c = forget * c + in * fresh;
      store(state, c);
      hyperbolic_tangent(c, squashed);
      const Lanes h = out * squashed;
      const int64_t place = (at + r * s.time) * n + unit;
      store(f.y + place, h);
      if (!f.gates) continue;
      float* gates = f.gates + (at + r * s.time) * kGates * n + unit;
      store(gates, in);
      store(gates + n, forget);
      store(gates + 2 * n, fresh);
      store(gates + 3 * n, out);
      store(f.cells + place, c);
    }
  }
};

// Weights [k, 4 hidden] as [units / 16, k, 4, 16] for the units of a part.
void pack_gates(const float* w, int64_t k, int64_t hidden, const Part& part, float* to) {
  for (int64_t unit = part.begin; unit < part.end; unit += kUnits) {
    float* block = to + unit * kGates * k;
    for (int64_t i = 0; i < k; i++)
      for (int g = 0; g < kGates; g++)
        std::copy_n(w + i * kGates * hidden + g * hidden + unit, kUnits, block + (i * kGates + g) * kUnits);
  }
}

AVX512 void forward_part(void* data) {
  const auto& f = *static_cast<const Forward*>(data);
  const Shape& s = f.shape;
  const Part part(s);
  const int64_t n = s.hidden, recurrent = s.cin * kGates * n;  // where the recurrent weights begin when packed
  if (f.packed) {
    pack_gates(f.w_input, s.cin, n, part, f.packed);
    pack_gates(f.w_recurrent, n, n, part, f.packed + recurrent);
  }
  auto weights = [&](int64_t unit) {
    const int64_t block = unit * kGates;
    return f.packed ? Weights{f.packed + block * s.cin, f.packed + recurrent + block * n, kGates * kUnits, kUnits}
                    : Weights{f.w_input + unit, f.w_recurrent + unit, kGates * n, n};
  };
  if (f.projected)
    for (int64_t unit = part.begin; unit < part.end; unit += kUnits)
      each_rows(s.batch * s.time, Projection{f, weights(unit), unit});
  for (int64_t number = 0; number < s.time; number++) {
    const int64_t t = step_at(s, number), before = number ? step_at(s, number - 1) : -1;
    for (int64_t unit = part.begin; unit < part.end; unit += kUnits)
      each_rows(s.batch, Cell{f, weights(unit), t, before, unit});
    if (number + 1 < s.time) pool::barrier();
  }
  const int64_t last = step_at(s, s.time - 1), width = part.end - part.begin;
  for (int64_t row = 0; row < s.batch; row++) {
    const float* y = f.y + row * s.time * n + part.begin;
    std::copy_n(y + last * n, width, f.h + row * n + part.begin);
    if (!f.previous) continue;
    float* previous = f.previous + row * s.time * n + part.begin;
    for (int64_t number = 0; number < s.time; number++) {
      float* to = previous + step_at(s, number) * n;
      if (number > 0) {
        std::copy_n(y + step_at(s, number - 1) * n, width, to);
      } else if (f.h0) {
        std::copy_n(f.h0 + row * n + part.begin, width, to);
      } else {
        std::fill_n(to, width, 0.0f);
      }
    }
  }
}

// Backward.

struct Recurrent {  // dh before a step, of some rows and V vectors of units, from the gradients of the step's gates
  const float* dgates;  // of the first row
  int64_t row_step, k;
  const float* w;
  float* dh;
  int64_t dh_step, vectors;

  template <int R>
  INLINE void run(int64_t row) {
    switch (vectors) {
      case 4: return sum<R, 4>(row);
      case 3: return sum<R, 3>(row);
      case 2: return sum<R, 2>(row);
      default: return sum<R, 1>(row);
    }
  }

  template <int R, int V>
  INLINE void sum(int64_t row) {
    Lanes sums[R][V];
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) sums[r][v] = Lanes{};
    multiply<R, V>(dgates + row * row_step, row_step, w, V * kUnits, kUnits, k, sums);
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) store(dh + (row + r) * dh_step + v * kUnits, sums[r][v]);
  }
};

int64_t vectors_at(int64_t unit, const Part& part) { return std::min<int64_t>(4, (part.end - unit) / kUnits); }

// w [hidden, 4 hidden] transposed, for each group of at most 4 vectors of a part's units: [4 hidden, vectors, 16].
void pack_transposed(const float* w, int64_t hidden, const Part& part, float* to) {
  const int64_t k = kGates * hidden;
  for (int64_t unit = part.begin; unit < part.end; unit += vectors_at(unit, part) * kUnits) {
    const int64_t width = vectors_at(unit, part) * kUnits;
    float* block = to + unit * k;
    for (int64_t i = 0; i < k; i += 16)
      for (int64_t u = 0; u < width; u++)
        for (int64_t j = i; j < i + 16; j++) block[j * width + u] = w[(unit + u) * k + j];
  }
}

AVX512 void backward_part(void* data) {
  const auto& b = *static_cast<const Backward*>(data);
  const Shape& s = b.shape;
  const Part part(s);
  const int64_t n = s.hidden, width = part.end - part.begin;
  pack_transposed(b.w_recurrent, n, part, b.packed);
  for (int g = 0; g < kGates; g++) std::fill_n(b.dbias + g * n + part.begin, width, 0.0f);
  for (int64_t row = 0; row < s.batch; row++) {  // dh0 and dc0 hold those of the step at hand
    std::copy_n(b.dh + row * n + part.begin, width, b.dh0 + row * n + part.begin);
    std::copy_n(b.dc + row * n + part.begin, width, b.dc0 + row * n + part.begin);
  }
  for (int64_t number = s.time - 1; number >= 0; number--) {
    const int64_t t = step_at(s, number), before = number ? step_at(s, number - 1) : -1;
    for (int64_t unit = part.begin; unit < part.end; unit += kUnits) {
      Lanes sums[kGates];
      for (int g = 0; g < kGates; g++) load(b.dbias + g * n + unit, sums[g]);
      for (int64_t row = 0; row < s.batch; row++) {
        const int64_t at = row * s.time + t, state = row * n + unit;
        const float* gates = b.gates + at * kGates * n + unit;
        Lanes in, forget, fresh, out, c, squashed, old = {}, dh, dc, dy;
        load(gates, in);
        load(gates + n, forget);
        load(gates + 2 * n, fresh);
        load(gates + 3 * n, out);
        load(b.cells + at * n + unit, c);
        if (before >= 0) {
          load(b.cells + (row * s.time + before) * n + unit, old);
        } else if (b.c0) {
          load(b.c0 + state, old);
        }
        load(b.dy + at * n + unit, dy);
        load(b.dh0 + state, dh);
        load(b.dc0 + state, dc);
        dh += dy;
        hyperbolic_tangent(c, squashed);
        dc += dh * out * (1.0f - squashed * squashed);
        const Lanes d[kGates] = {dc * fresh * in * (1.0f - in), dc * old * forget * (1.0f - forget),
                                 dc * in * (1.0f - fresh * fresh), dh * squashed * out * (1.0f - out)};
        float* dgates = b.dgates + at * kGates * n + unit;
        for (int g = 0; g < kGates; g++) {
          store(dgates + g * n, d[g]);
          sums[g] += d[g];
        }
        store(b.dc0 + state, dc * forget);
      }
      for (int g = 0; g < kGates; g++) store(b.dbias + g * n + unit, sums[g]);
    }
    pool::barrier();  // a row's gradients of all gates are needed for each of its units
    for (int64_t unit = part.begin; unit < part.end; unit += vectors_at(unit, part) * kUnits)
      each_rows(s.batch, Recurrent{b.dgates + t * kGates * n, s.time * kGates * n, kGates * n,
                                   b.packed + unit * kGates * n, b.dh0 + unit, n, vectors_at(unit, part)});
  }
}

}  // namespace

void forward(Forward job) {
  pool::in_parallel(forward_part, &job, parts_of(job.shape, job.shape.cin + job.shape.hidden));
}

void backward(Backward job) { pool::in_parallel(backward_part, &job, parts_of(job.shape, job.shape.hidden)); }

}  // namespace lstm
