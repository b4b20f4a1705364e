// An LSTM in float32 that stays in one parallel region for all its steps. oneDNN's opens two or more for each step of
// training, and keeps pre-activations and gates in memory in between.
#pragma once
#include <cstdint>

namespace lstm {

// Arrays are [batch, time, features] row by row; gates stand in the order i f g o, each of `hidden` columns.
struct Shape {
  int64_t batch, time, cin, hidden;
  int64_t reverse;  // whether it runs from the last step to the first
};

constexpr int64_t kUnits = 16;  // hidden must be a multiple of it

struct Forward {
  Shape shape;
  const float *x, *w_input, *w_recurrent, *bias;  // [b, t, cin], [cin, 4 hidden], [hidden, 4 hidden], [4 hidden]
  const float *h0, *c0;                           // [b, hidden], null for zeros
  float *y, *h, *c;                               // [b, t, hidden], [b, hidden], [b, hidden]
  float *gates, *cells, *previous;  // of every step, for the backward pass: the gates, c, and h before it; or all null
  float* packed;     // scratch, [cin + hidden, 4 hidden]; or null for so few rows that it does not pay
  float* projected;  // [b, t, 4 hidden], which may be the gates' memory: the input's products, for few rows; or null
};

struct Backward {
  Shape shape;
  const float *w_recurrent, *c0;
  const float *gates, *cells;
  const float *dy, *dh, *dc;  // of y, h and c
  float *dgates;              // [b, t, 4 hidden], of the pre-activations
  float *dbias, *dh0, *dc0;   // [4 hidden], [b, hidden], [b, hidden]
  float* packed;              // scratch, [hidden, 4 hidden]
};

// The caller has the turn.
void forward(Forward job);
void backward(Backward job);

}  // namespace lstm
