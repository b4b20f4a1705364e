// Plans: what one call does, made once for a shape in Python (descriptors.py) and run here many times by many threads.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "pool.h"

namespace plans {

enum class Where : int64_t { kArgument = 0, kResult = 1, kScratch = 2 };
enum class StepKind : int64_t {
  kPrimitive = 0,
  kZero = 1,
  kDepthwise = 2,
  kNormalize = 3,
  kNormalizeBackward = 4,
  kLstm = 5,
  kLstmBackward = 6,
};

struct Region {  // of memory, seen as a oneDNN memory object
  Where where;
  int64_t index;   // of the argument or result
  int64_t offset;  // in bytes
  void* desc;      // dnnl_memory_desc_t, owned by the plan; null for plain bytes
};

struct Step {
  StepKind kind;
  void* primitive;                // dnnl_primitive_t, owned by the plan
  std::vector<int64_t> operands;  // kPrimitive: pairs (oneDNN's argument number, region); kZero: region, bytes;
                                  // kDepthwise: regions of x, dy, dw, scratch; its geometry
                                  // kNormalize..., kLstm...: regions of its pointers, -1 for null; its shape
};

struct Plan {
  std::string spec;  // the text that names it in programs and errors
  int64_t scratch_bytes = 0;
  int64_t arguments = 0, results = 0;
  std::vector<Region> regions;
  std::vector<Step> steps;
  bool owns = false;  // its primitives and descriptors; else they are still Python's
  Plan() = default;
  Plan(const Plan&) = delete;
  ~Plan();
};

// The address of one argument, result or the scratch memory.
struct Bases {
  void** arguments;
  void** results;
  char* scratch;
};

// What went wrong in a call; an empty text if nothing did.
struct Failure {
  std::string text;
  bool out_of_memory = false;
};

// Runs the plan on the whole team, with helpers from `schedule`.
Failure run(const Plan& plan, const Bases& bases, pool::Schedule schedule, void* context);

// The plan for a spec, made by Python if it is not there (any more). Null with `why` set if that failed.
std::shared_ptr<const Plan> find(std::string_view spec, std::string* why);

}  // namespace plans
