// Vectors of 16 floats, and their loads and stores from float32 and bfloat16, for the kernels that are our own.
#pragma once
#include <cstdint>
#include <cstring>

// One function for each kind of CPU; what it calls must be inlined into it to be compiled for that CPU too.
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#define INLINE inline __attribute__((always_inline))

namespace lanes {

enum Dtype : int64_t { kFloat32 = 0, kBFloat16 = 1 };

constexpr int kLanes = 16;  // one AVX-512 register, two of AVX2

using Lanes = float __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));
using Signed = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t)), aligned(4)));
using Words = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t)), aligned(4)));
using Halves = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t)), aligned(2)));

// A vector by reference: passed by value it would depend on the clone's calling convention.
INLINE void load(const float* from, Lanes& v) { v = *reinterpret_cast<const Lanes*>(from); }
INLINE void store(float* to, const Lanes& v) { *reinterpret_cast<Lanes*>(to) = v; }
INLINE float number(float value) { return value; }
INLINE void put(float* to, float value) { *to = value; }

// A bfloat16 is the upper half of a float.
INLINE void load(const uint16_t* from, Lanes& v) {
  const Words w = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words) << 16;
  std::memcpy(&v, &w, sizeof v);
}

INLINE void store(uint16_t* to, const Lanes& v) {  // to the nearest, ties to even
  Words w;
  std::memcpy(&w, &v, sizeof w);
  const Words nan = reinterpret_cast<Words>(v != v);
  w = (w + 0x7fff + (w >> 16 & 1)) >> 16;
  w = (w & ~nan) | (nan & 0x7fc0);
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector(w, Halves);
}

INLINE float number(uint16_t half) {
  const uint32_t word = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

INLINE void put(uint16_t* to, float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  *to = value != value ? 0x7fc0 : static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

}  // namespace lanes
