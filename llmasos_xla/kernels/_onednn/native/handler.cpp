// The function that XLA calls: finds the plan of the call and runs it on the call's buffers. Holds no state of its own,
// so that any number of threads and devices may be in it at once, and lets no exception out.
#include <sys/mman.h>

#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <string_view>

#include "plans.h"
#include "xla_ffi.h"

namespace {

constexpr size_t kAlignment = 64;

std::string shapes(const ffi::CallFrame* frame) {
  std::string text;
  for (const ffi::Operands* side : {&frame->arguments, &frame->results}) {
    text += side == &frame->arguments ? " (arguments" : "; results";
    for (int64_t i = 0; i < side->size; i++) {
      text += " [";
      for (int64_t d = 0; d < side->buffers[i]->rank; d++)
        text += (d ? "," : "") + std::to_string(side->buffers[i]->dims[d]);
      text += "]";
    }
  }
  return text + ")";
}

ffi::Error* error(const ffi::CallFrame* frame, int code, const char* text) {
  ffi::ErrorCreate arguments{sizeof(ffi::ErrorCreate), nullptr, text, code};
  return frame->api->create_error(&arguments);
}

ffi::Error* error(const ffi::CallFrame* frame, int code, std::string_view spec, const std::string& text) {
  return error(frame, code, ("oneDNN: " + std::string(spec) + ": " + text + shapes(frame)).c_str());
}

const void* string_attribute(const ffi::CallFrame* frame, std::string_view name) {
  const ffi::Attributes& a = frame->attributes;
  for (int64_t i = 0; i < a.size; i++)
    if (a.types[i] == ffi::kString && std::string_view(a.names[i]->data, a.names[i]->size) == name) return a.values[i];
  return nullptr;
}

struct Scratch {  // Memory for a plan that needs more than the program was compiled with.
  void* memory = nullptr;
  ~Scratch() { std::free(memory); }
};

bool schedule(void* context, pool::Task task, void* data) {
  auto frame = static_cast<const ffi::CallFrame*>(context);
  ffi::ScheduleTask arguments{sizeof(ffi::ScheduleTask), nullptr, frame->context, task, data};
  ffi::Error* refused = frame->api->schedule_task(&arguments);
  if (!refused) return true;
  ffi::ErrorDestroy destroy{sizeof(ffi::ErrorDestroy), nullptr, refused};
  frame->api->destroy_error(&destroy);
  return false;
}

// XLA gives a large result fresh memory for each call, and touching it page by page for the first time takes longer than
// many a convolution that fills it: ask for huge pages, where the system leaves that to its programs.
void advise(const ffi::Buffer* buffer, size_t bytes) {
  constexpr uintptr_t kHugePage = 2 << 20;
  if (bytes < 4 * kHugePage) return;
  const uintptr_t from = (reinterpret_cast<uintptr_t>(buffer->data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t to = (reinterpret_cast<uintptr_t>(buffer->data) + bytes) & ~(kHugePage - 1);
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
}

size_t bytes_of(const ffi::Buffer* buffer) {
  size_t bytes = ffi::item_size(buffer->dtype);
  for (int64_t d = 0; d < buffer->rank; d++) bytes *= static_cast<size_t>(buffer->dims[d]);
  return bytes;
}

ffi::Error* execute(const ffi::CallFrame* frame) {
  if (!pool::alive())
    return error(frame, ffi::kInternal, "oneDNN: threads do not survive a fork: start processes by spawn or forkserver");
  auto attribute = static_cast<const ffi::ByteSpan*>(string_attribute(frame, "spec"));
  if (!attribute) return error(frame, ffi::kInvalidArgument, "oneDNN: the call does not say what to compute");
  const std::string_view spec(attribute->data, attribute->size);
  std::string why;
  auto plan = plans::find(spec, &why);
  if (!plan) return error(frame, ffi::kInternal, spec, why);
  // The last result is the scratch memory.
  constexpr int64_t kMost = 64;
  if (frame->arguments.size < plan->arguments || frame->results.size != plan->results + 1 ||
      frame->arguments.size > kMost || frame->results.size > kMost)
    return error(frame, ffi::kInvalidArgument, spec,
                 "its plan takes " + std::to_string(plan->arguments) + " arguments and " +
                     std::to_string(plan->results) + " results");
  void *arguments[kMost], *results[kMost];
  for (int64_t i = 0; i < frame->arguments.size; i++) arguments[i] = frame->arguments.buffers[i]->data;
  for (int64_t i = 0; i < frame->results.size; i++) {
    results[i] = frame->results.buffers[i]->data;
    advise(frame->results.buffers[i], bytes_of(frame->results.buffers[i]));
  }
  const ffi::Buffer* given = frame->results.buffers[plan->results];
  const int64_t given_bytes = given->rank == 1 ? given->dims[0] : 0;
  plans::Bases bases{arguments, results, static_cast<char*>(given->data)};
  Scratch own;
  const bool aligned = reinterpret_cast<uintptr_t>(given->data) % kAlignment == 0;
  if (plan->scratch_bytes > 0 && (given_bytes < plan->scratch_bytes || !aligned)) {
    own.memory = std::aligned_alloc(kAlignment, (plan->scratch_bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (!own.memory)
      return error(frame, ffi::kResourceExhausted, spec,
                   "no memory for " + std::to_string(plan->scratch_bytes) + " bytes of scratch");
    bases.scratch = static_cast<char*>(own.memory);
  }
  const bool has_pool = frame->api->struct_size >= sizeof(ffi::Api) && frame->api->version.minor >= ffi::kTasksSince;
  const plans::Failure failed =
      plans::run(*plan, bases, has_pool ? schedule : nullptr, const_cast<ffi::CallFrame*>(frame));
  if (failed.text.empty()) return nullptr;
  return error(frame, failed.out_of_memory ? ffi::kResourceExhausted : ffi::kInternal, spec, failed.text);
}

}  // namespace

extern "C" ffi::Error* llm_handler(ffi::CallFrame* frame) {
  for (ffi::Extension* e = frame->extensions; e; e = e->next) {
    if (e->type != ffi::kMetadata) continue;
    ffi::Metadata* metadata = reinterpret_cast<ffi::MetadataExtension*>(e)->metadata;
    metadata->version.major = ffi::kMajor;
    metadata->version.minor = ffi::kMinor;
    metadata->traits = 0;
    return nullptr;
  }
  if (frame->stage != ffi::kExecute) return nullptr;
  try {
    return execute(frame);
  } catch (const std::bad_alloc&) {
    return error(frame, ffi::kResourceExhausted, "oneDNN: no memory left for a call");
  } catch (const std::exception& e) {
    return error(frame, ffi::kInternal, e.what());
  }
}
