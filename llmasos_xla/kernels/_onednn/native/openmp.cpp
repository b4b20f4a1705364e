#include "openmp.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "pool.h"

namespace openmp {
namespace {

struct Loop {  // a worksharing loop, from the view of one part
  long start = 0, end = 0, step = 1, chunk = 0, trip = 0;
};
thread_local Loop loop;
// Regions that are open on this thread inside of a region, or too small to share: teams of one.
thread_local int alone = 0;
// Whether the open region took the turn itself, for a user of oneDNN other than the handler.
thread_local bool own_turn = false;

int parts() { return alone ? 1 : pool::parts(); }
int part() { return alone ? 0 : pool::part(); }

void parallel_start(void (*region)(void*), void* data, unsigned wanted) {
  const int most = pool::threads();
  const int size = wanted == 0 || static_cast<int>(wanted) > most ? most : static_cast<int>(wanted);
  if (alone || pool::parts() > 1 || size == 1) {
    alone++;
    return;
  }
  if (!pool::has_turn()) {
    pool::take_turn(nullptr, nullptr);
    own_turn = true;
  }
  pool::open(region, data, size);
}

void parallel_end() {
  if (alone) {
    alone--;
    return;
  }
  pool::close();
  if (own_turn) pool::give_turn();
  own_turn = false;
}

void parallel(void (*region)(void*), void* data, unsigned wanted, unsigned) {
  parallel_start(region, data, wanted);
  region(data);
  parallel_end();
}

void barrier() {
  if (!alone) pool::barrier();
}

// schedule(static, chunk): part i takes the chunks i, i + parts, i + 2 parts ...
bool loop_next(long* from, long* to) {
  const long sign = loop.step > 0 ? 1 : -1;
  const long count = (loop.end - loop.start + loop.step - sign) / loop.step;
  long low, high;
  if (loop.chunk == 0) {  // one share each, the first ones a step longer
    if (loop.trip > 0 || count <= 0) return false;
    const long share = count / parts(), more = count % parts(), i = part();
    low = i * share + (i < more ? i : more);
    high = low + share + (i < more ? 1 : 0);
  } else {
    low = (loop.trip * parts() + part()) * loop.chunk;
    high = low + loop.chunk < count ? low + loop.chunk : count;
  }
  if (low >= high) return false;
  loop.trip++;
  *from = loop.start + low * loop.step;
  *to = loop.start + high * loop.step;
  return true;
}

bool loop_start(long start, long end, long step, long chunk, long* from, long* to) {
  loop = {start, end, step, chunk, 0};
  return loop_next(from, to);
}

void loop_end_nowait() {}
int max_threads() { return pool::threads(); }
int in_parallel() { return pool::parts() > 1; }

void* replacement(const char* name) {
  static const struct {
    const char* name;
    void* function;
  } known[] = {
      {"GOMP_parallel_start", reinterpret_cast<void*>(parallel_start)},
      {"GOMP_parallel_end", reinterpret_cast<void*>(parallel_end)},
      {"GOMP_parallel", reinterpret_cast<void*>(parallel)},
      {"GOMP_barrier", reinterpret_cast<void*>(barrier)},
      {"GOMP_loop_static_start", reinterpret_cast<void*>(loop_start)},
      {"GOMP_loop_static_next", reinterpret_cast<void*>(loop_next)},
      {"GOMP_loop_end_nowait", reinterpret_cast<void*>(loop_end_nowait)},
      {"omp_get_max_threads", reinterpret_cast<void*>(max_threads)},
      {"omp_get_num_threads", reinterpret_cast<void*>(parts)},
      {"omp_get_thread_num", reinterpret_cast<void*>(part)},
      {"omp_in_parallel", reinterpret_cast<void*>(in_parallel)},
  };
  for (const auto& k : known)
    if (std::strcmp(k.name, name) == 0) return k.function;
  return nullptr;
}

struct Table {
  const Elf64_Rela* entries = nullptr;
  size_t count = 0;
};

// Calls visit(slot, function) for each place where the library keeps the address of an OpenMP function; `function` is
// null where there is no replacement. False if a visit was.
template <typename Visit>
bool each_call(const link_map* map, Visit visit) {
  Table calls, data;
  const Elf64_Sym* symbols = nullptr;
  const char* strings = nullptr;
  for (const Elf64_Dyn* d = map->l_ld; d->d_tag != DT_NULL; d++) {
    if (d->d_tag == DT_JMPREL) calls.entries = reinterpret_cast<const Elf64_Rela*>(d->d_un.d_ptr);
    if (d->d_tag == DT_PLTRELSZ) calls.count = d->d_un.d_val / sizeof(Elf64_Rela);
    if (d->d_tag == DT_RELA) data.entries = reinterpret_cast<const Elf64_Rela*>(d->d_un.d_ptr);
    if (d->d_tag == DT_RELASZ) data.count = d->d_un.d_val / sizeof(Elf64_Rela);
    if (d->d_tag == DT_SYMTAB) symbols = reinterpret_cast<const Elf64_Sym*>(d->d_un.d_ptr);
    if (d->d_tag == DT_STRTAB) strings = reinterpret_cast<const char*>(d->d_un.d_ptr);
  }
  if (!symbols || !strings) return false;
  for (const Table& table : {calls, data}) {
    for (size_t i = 0; table.entries && i < table.count; i++) {
      const auto type = ELF64_R_TYPE(table.entries[i].r_info);
      if (type != R_X86_64_JUMP_SLOT && type != R_X86_64_GLOB_DAT) continue;
      const char* name = strings + symbols[ELF64_R_SYM(table.entries[i].r_info)].st_name;
      if (std::strncmp(name, "GOMP_", 5) != 0 && std::strncmp(name, "omp_", 4) != 0) continue;
      if (!visit(reinterpret_cast<void**>(map->l_addr + table.entries[i].r_offset), replacement(name))) return false;
    }
  }
  return true;
}

}  // namespace

bool redirect(void* handle) {
  link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || !map) return false;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  int found = 0;
  // All or none: a library with its calls on two teams would hang.
  auto known = [&](void**, void* function) { return function && ++found; };
  auto writable = [&](void** slot, void*) {
    auto first = reinterpret_cast<uintptr_t>(slot) & ~(page - 1);
    return mprotect(reinterpret_cast<void*>(first), page, PROT_READ | PROT_WRITE) == 0;
  };
  auto write = [](void** slot, void* function) {
    *slot = function;
    return true;
  };
  return each_call(map, known) && found > 0 && each_call(map, writable) && each_call(map, write);
}

}  // namespace openmp
