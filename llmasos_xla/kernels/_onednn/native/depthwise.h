// The kernel gradient of a depthwise convolution, which oneDNN 3.2 has fast kernels for at 3x3 and smaller only.
#pragma once
#include <cstdint>

#include "lanes.h"

namespace depthwise {

// x, dy and dw are of `dtype`: x [batch, height, width, channels], dy [batch, out_height, out_width, channels],
// dw [rows, columns, channels].
struct Geometry {
  lanes::Dtype dtype;
  int64_t batch, height, width, channels, out_height, out_width, rows, columns;
  int64_t stride_h, stride_w, dilation_h, dilation_w, low_h, low_w;
};

// dw[i, j] = sum over n, y, x of x[n, y stride - low + i dilation, ...] dy[n, y, x], each channel apart, summed in
// float32. The scratch memory holds a dw for each thread of the team. The caller has the turn.
void kernel_gradient(const Geometry& g, const void* x, const void* dy, void* dw, float* scratch);

}  // namespace depthwise
