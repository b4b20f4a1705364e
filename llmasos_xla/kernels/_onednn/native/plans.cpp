#include "plans.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <list>
#include <mutex>
#include <unordered_map>

#include "depthwise.h"
#include "lstm.h"
#include "normalize.h"
#include "openmp.h"
#include "pool.h"

namespace plans {
namespace {

constexpr int kOutOfMemory = 1;
constexpr size_t kReasonBytes = 1024;

using Shared = std::shared_ptr<const Plan>;
using Maker = int (*)(const char* spec, char* why, size_t size);

struct ExecArg {
  int number;
  void* memory;
};

struct Library {  // The functions of oneDNN that run a plan; the ones that make it are called from Python.
  int (*engine_create)(void**, int, size_t) = nullptr;
  int (*stream_create)(void**, void*, unsigned) = nullptr;
  int (*memory_create)(void**, const void*, void*, void*) = nullptr;
  int (*memory_destroy)(void*) = nullptr;
  int (*memory_desc_destroy)(void*) = nullptr;
  int (*primitive_execute)(void*, void*, int, const ExecArg*) = nullptr;
  int (*primitive_destroy)(void*) = nullptr;
  void* engine = nullptr;
  void* stream = nullptr;  // of whoever holds the team
} dnnl;

struct Cache {
  std::mutex guard;
  std::list<Shared> by_use;  // the last used first
  std::unordered_map<std::string_view, std::list<Shared>::iterator> index;  // keys are the plans' own texts
  size_t capacity = 1024;
};

// Never destroyed: at the end of the process oneDNN may be gone before it, and other threads still at work.
Cache& cache = *new Cache;

std::mutex making;  // one plan at a time, so that threads that miss the same one make it once
Maker maker = nullptr;
thread_local Shared* made_here = nullptr;  // where `find` waits for the plan that its maker puts

const char* status_name(int status) {
  static const char* names[] = {"success",           "out_of_memory", "invalid_arguments", "unimplemented",
                                "last_impl_reached", "runtime_error", "not_required",      "invalid_graph"};
  return status >= 0 && status < 8 ? names[status] : "unknown status";
}

Failure failure(std::string text, int status) { return {text + ": " + status_name(status), status == kOutOfMemory}; }

// oneDNN's memory objects for the regions of one call; each call has its own, so that threads share none.
struct Memories {
  std::vector<void*> of;
  ~Memories() {
    for (void* m : of)
      if (m) dnnl.memory_destroy(m);
  }
};

struct Turn {
  Turn(pool::Schedule schedule, void* context) { pool::take_turn(schedule, context); }
  ~Turn() { pool::give_turn(); }
  Turn(const Turn&) = delete;
};

Shared look_up(std::string_view spec) {
  std::lock_guard<std::mutex> lock(cache.guard);
  auto at = cache.index.find(spec);
  if (at == cache.index.end()) return nullptr;
  cache.by_use.splice(cache.by_use.begin(), cache.by_use, at->second);
  return *at->second;
}

void put(const Shared& plan) {
  std::list<Shared> fresh{plan}, dropped;  // dropped plans are destroyed after the lock is gone
  std::lock_guard<std::mutex> lock(cache.guard);
  auto drop = [&](std::list<Shared>::iterator at) {
    cache.index.erase((*at)->spec);
    dropped.splice(dropped.begin(), cache.by_use, at);
  };
  auto before = cache.index.find(plan->spec);
  if (before != cache.index.end()) drop(before->second);
  cache.index.emplace(plan->spec, fresh.begin());
  cache.by_use.splice(cache.by_use.begin(), fresh);
  while (cache.by_use.size() > cache.capacity) drop(std::prev(cache.by_use.end()));
}

char* base(const Region& r, const Bases& bases) {
  switch (r.where) {
    case Where::kArgument:
      return static_cast<char*>(bases.arguments[r.index]) + r.offset;
    case Where::kResult:
      return static_cast<char*>(bases.results[r.index]) + r.offset;
    default:
      return bases.scratch + r.offset;
  }
}

// The steps that are not oneDNN's.

void zero(const Plan& plan, const Bases& bases, const std::vector<int64_t>& o) {
  std::memset(base(plan.regions[o[0]], bases), 0, static_cast<size_t>(o[1]));
}

// Reads a step's words: regions in the order of the structure's pointers, then the structure's own numbers.
class Words {
 public:
  Words(const Plan& plan, const Bases& bases, const std::vector<int64_t>& words)
      : plan_(plan), bases_(bases), next_(words.data()) {}

  template <typename... T>
  void memory(T*&... to) {
    ((to = static_cast<T*>(address())), ...);
  }

  template <typename Shape>
  void shape(Shape& to) {
    std::memcpy(&to, next_, sizeof to);
    next_ += sizeof to / sizeof *next_;
  }

  float number() {
    double wide;
    std::memcpy(&wide, next_++, sizeof wide);
    return static_cast<float>(wide);
  }

 private:
  void* address() {
    const int64_t region = *next_++;
    return region < 0 ? nullptr : base(plan_.regions[static_cast<size_t>(region)], bases_);
  }

  const Plan& plan_;
  const Bases& bases_;
  const int64_t* next_;
};

void depthwise_gradient(Words words) {
  const void *x, *dy;
  void* dw;
  float* sums;
  depthwise::Geometry g;
  words.memory(x, dy, dw, sums);
  words.shape(g);
  depthwise::kernel_gradient(g, x, dy, dw, sums);
}

void normalize_forward(Words words) {
  normalize::Forward f;
  words.memory(f.x, f.residual, f.scale, f.offset, f.y, f.mean, f.variance, f.scratch);
  f.epsilon = words.number();
  words.shape(f.shape);
  normalize::forward(f);
}

void normalize_backward(Words words) {
  normalize::Backward b;
  words.memory(b.x, b.y, b.dy, b.mean, b.variance, b.scale, b.offset, b.dx, b.dresidual, b.dscale, b.doffset,
               b.scratch);
  b.epsilon = words.number();
  words.shape(b.shape);
  normalize::backward(b);
}

void lstm_forward(Words words) {
  lstm::Forward f;
  words.memory(f.x, f.w_input, f.w_recurrent, f.bias, f.h0, f.c0, f.y, f.h, f.c, f.gates, f.cells, f.previous,
               f.packed, f.projected);
  words.shape(f.shape);
  lstm::forward(f);
}

void lstm_backward(Words words) {
  lstm::Backward b;
  words.memory(b.w_recurrent, b.c0, b.gates, b.cells, b.dy, b.dh, b.dc, b.dgates, b.dbias, b.dh0, b.dc0, b.packed);
  words.shape(b.shape);
  lstm::backward(b);
}

}  // namespace

Plan::~Plan() {
  if (!owns) return;
  for (const Step& s : steps)
    if (s.primitive) dnnl.primitive_destroy(s.primitive);
  for (const Region& r : regions)
    if (r.desc) dnnl.memory_desc_destroy(r.desc);
}

Failure run(const Plan& plan, const Bases& bases, pool::Schedule schedule, void* context) {
  Memories memories;
  memories.of.resize(plan.regions.size(), nullptr);
  for (size_t i = 0; i < plan.regions.size(); i++) {
    if (!plan.regions[i].desc) continue;
    int status = dnnl.memory_create(&memories.of[i], plan.regions[i].desc, dnnl.engine, base(plan.regions[i], bases));
    if (status != 0) return failure("memory object", status);
  }
  std::vector<ExecArg> operands;
  const Turn turn(schedule, context);
  for (size_t s = 0; s < plan.steps.size(); s++) {
    const Step& step = plan.steps[s];
    const auto& o = step.operands;
    switch (step.kind) {
      case StepKind::kPrimitive:
        break;
      case StepKind::kZero:
        zero(plan, bases, o);
        continue;
      case StepKind::kDepthwise:
        depthwise_gradient({plan, bases, o});
        continue;
      case StepKind::kNormalize:
        normalize_forward({plan, bases, o});
        continue;
      case StepKind::kNormalizeBackward:
        normalize_backward({plan, bases, o});
        continue;
      case StepKind::kLstm:
        lstm_forward({plan, bases, o});
        continue;
      case StepKind::kLstmBackward:
        lstm_backward({plan, bases, o});
        continue;
    }
    operands.clear();
    for (size_t i = 0; i + 1 < o.size(); i += 2)
      operands.push_back({static_cast<int>(o[i]), memories.of[static_cast<size_t>(o[i + 1])]});
    int status = dnnl.primitive_execute(step.primitive, dnnl.stream, static_cast<int>(operands.size()), operands.data());
    if (status != 0)
      return failure("step " + std::to_string(s + 1) + " of " + std::to_string(plan.steps.size()), status);
  }
  return {};
}

Shared find(std::string_view spec, std::string* why) {
  if (auto plan = look_up(spec)) return plan;
  // Not here: a program that another process compiled, or a plan that others have crowded out.
  std::lock_guard<std::mutex> lock(making);
  if (auto plan = look_up(spec)) return plan;
  if (!maker) {
    *why = "its plan is not there, and Python is not there to make it";
    return nullptr;
  }
  Shared plan;
  char reason[kReasonBytes] = "";
  made_here = &plan;
  int failed = maker(std::string(spec).c_str(), reason, sizeof reason);
  made_here = nullptr;
  if (failed || !plan) *why = reason[0] ? reason : "its plan could not be made";
  return failed ? nullptr : plan;
}

}  // namespace plans

extern "C" {

// Loads oneDNN's functions from the library at `handle` (from dlopen) and makes its engine. 0, or why not in `why`.
int llm_open(void* handle, char* why, size_t size) {
  using plans::dnnl;
  struct {
    const char* name;
    void** slot;
  } wanted[] = {
      {"dnnl_engine_create", reinterpret_cast<void**>(&dnnl.engine_create)},
      {"dnnl_stream_create", reinterpret_cast<void**>(&dnnl.stream_create)},
      {"dnnl_memory_create", reinterpret_cast<void**>(&dnnl.memory_create)},
      {"dnnl_memory_destroy", reinterpret_cast<void**>(&dnnl.memory_destroy)},
      {"dnnl_memory_desc_destroy", reinterpret_cast<void**>(&dnnl.memory_desc_destroy)},
      {"dnnl_primitive_execute", reinterpret_cast<void**>(&dnnl.primitive_execute)},
      {"dnnl_primitive_destroy", reinterpret_cast<void**>(&dnnl.primitive_destroy)},
  };
  for (const auto& w : wanted) {
    *w.slot = dlsym(handle, w.name);
    if (!*w.slot) {
      std::snprintf(why, size, "it has no function %s", w.name);
      return 1;
    }
  }
  int status = dnnl.engine_create(&dnnl.engine, 1, 0);
  if (status == 0) status = dnnl.stream_create(&dnnl.stream, dnnl.engine, 1);
  if (status != 0) std::snprintf(why, size, "it gave no CPU engine: %s", plans::status_name(status));
  return status;
}

void* llm_engine() { return plans::dnnl.engine; }

// Puts a plan in the cache, and takes its primitives and descriptors over from Python unless it fails. The words of
// `table`:
//   scratch bytes, arguments, results,
//   number of regions, for each: where, index, offset, descriptor,
//   number of steps, for each: kind, primitive, number of operands, operands
int llm_put(const char* spec, const int64_t* table) {
  try {
    auto plan = std::make_shared<plans::Plan>();
    plan->spec = spec;
    plan->scratch_bytes = *table++;
    plan->arguments = *table++;
    plan->results = *table++;
    for (int64_t n = *table++; n > 0; n--, table += 4)
      plan->regions.push_back(
          {static_cast<plans::Where>(table[0]), table[1], table[2], reinterpret_cast<void*>(table[3])});
    for (int64_t n = *table++; n > 0; n--) {
      plans::Step step{static_cast<plans::StepKind>(table[0]), reinterpret_cast<void*>(table[1]), {}};
      step.operands.assign(table + 3, table + 3 + table[2]);
      table += 3 + table[2];
      plan->steps.push_back(std::move(step));
    }
    plans::put(plan);
    plan->owns = true;
    if (plans::made_here) *plans::made_here = plan;
    return 0;
  } catch (const std::exception&) {
    return plans::kOutOfMemory;
  }
}

size_t llm_count() {
  std::lock_guard<std::mutex> lock(plans::cache.guard);
  return plans::cache.by_use.size();
}

// The most plans that are kept; takes effect with the next one.
void llm_capacity(size_t most) {
  std::lock_guard<std::mutex> lock(plans::cache.guard);
  plans::cache.capacity = most < 1 ? 1 : most;
}

void llm_maker(plans::Maker maker) { plans::maker = maker; }

int llm_redirect(void* handle) { return openmp::redirect(handle) ? 1 : 0; }

int llm_start(int threads, int spin_us) { return pool::start(threads, spin_us); }

const char* llm_sources() { return LLMASOS_SOURCES; }

}  // extern "C"
