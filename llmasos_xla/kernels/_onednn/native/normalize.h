// Batch normalization with the activation and the sum of a residual block in the same passes, which oneDNN's has not.
#pragma once
#include <cstdint>

#include "lanes.h"

namespace normalize {

// x, y, residual and their gradients are [rows, channels] of `dtype`, the rest [channels] of float32; channels are a
// multiple of kLanes.
struct Shape {
  int64_t rows, channels;
  lanes::Dtype dtype;
  int64_t relu;      // y = max(y, 0), at the end
  int64_t residual;  // y = ... + residual, before it
};

struct Forward {
  Shape shape;
  float epsilon;
  const void *x, *residual;      // residual null without one
  const float *scale, *offset;   // null for ones and zeros
  void* y;
  float *mean, *variance;
  float* scratch;  // [2 threads + 5, channels]
};

// The gradients. Under a ReLU its mask is read off y where there is a residual, else computed from x again.
struct Backward {
  Shape shape;
  float epsilon;
  const void *x, *y, *dy;
  const float *mean, *variance, *scale, *offset;
  void *dx, *dresidual;      // dresidual: dy under the mask; with ReLU and residual only
  float *dscale, *doffset;   // null where nobody asks
  float* scratch;  // likewise
};

// The caller has the turn.
void forward(const Forward& job);
void backward(const Backward& job);

}  // namespace normalize
