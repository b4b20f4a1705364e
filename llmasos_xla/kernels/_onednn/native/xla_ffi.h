// The part of XLA's foreign-function interface that the handler touches, version 0.1 and up.
//
// The layout is frozen by XLA's rule that structs only grow at the end. Written out here so that building this library
// needs no header of jaxlib's; XLA refuses the handler at registration where it cannot keep to the version that the
// handler names.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ffi {

constexpr int kMajor = 0, kMinor = 1;
// The minor version from which tasks for XLA's pool are known to stand where `Api` has them.
constexpr int kTasksSince = 3;

enum ErrorCode { kInvalidArgument = 3, kResourceExhausted = 8, kInternal = 13 };
enum AttributeType : int { kString = 4 };
enum ExtensionType : int { kMetadata = 1 };
enum Stage : int { kExecute = 3 };

// Bytes of an element, by XLA's number of its type; 1 for the types that no plan uses.
inline size_t item_size(int dtype) {
  switch (dtype) {
    case 4:   // s32
    case 11:  // f32
      return 4;
    case 10:  // f16
    case 16:  // bf16
      return 2;
    default:
      return 1;
  }
}

struct Error;

struct Extension {
  size_t struct_size;
  ExtensionType type;
  Extension* next;
};

struct Version {
  size_t struct_size;
  Extension* extensions;
  int major, minor;
};

struct Metadata {
  size_t struct_size;
  Version version;
  uint32_t traits;
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

struct Buffer {
  size_t struct_size;
  Extension* extensions;
  int dtype;
  void* data;
  int64_t rank;
  int64_t* dims;
};

struct ByteSpan {
  const char* data;
  size_t size;
};

struct Operands {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int* types;
  Buffer** buffers;
};

struct Attributes {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int* types;
  ByteSpan** names;
  void** values;
};

struct ErrorCreate {
  size_t struct_size;
  Extension* extensions;
  const char* message;
  int code;
};

struct ErrorDestroy {
  size_t struct_size;
  Extension* extensions;
  Error* error;
};

struct ScheduleTask {
  size_t struct_size;
  Extension* extensions;
  void* context;
  void (*task)(void*);
  void* data;
};

struct Api {
  size_t struct_size;
  Extension* extensions;
  Version version;
  const void* internal;
  Error* (*create_error)(ErrorCreate*);
  void* error_message;
  void (*destroy_error)(ErrorDestroy*);
  void *register_handler, *stream, *register_type, *execution_context, *set_state, *state, *allocate, *free;
  Error* (*schedule_task)(ScheduleTask*);
};

struct CallFrame {
  size_t struct_size;
  Extension* extensions;
  const Api* api;
  void* context;
  Stage stage;
  Operands arguments;
  Operands results;
  Attributes attributes;
};

}  // namespace ffi
