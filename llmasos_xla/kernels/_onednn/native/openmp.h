// What oneDNN calls in the place of GNU OpenMP.
#pragma once

namespace openmp {

// Points the OpenMP calls of the library at `handle` (from dlopen) at `pool`; no other library of the process is
// touched. False, and nothing changed, if the library makes an OpenMP call that is not provided here.
bool redirect(void* handle);

}  // namespace openmp
