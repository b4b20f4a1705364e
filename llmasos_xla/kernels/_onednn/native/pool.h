// The team of threads that oneDNN's parallel regions run on: one for the whole process.
//
// oneDNN as published on the package index is built on GNU OpenMP, which gives each calling thread a team of its own.
// XLA calls from many threads and keeps a pool itself, so many teams would fight for the cores: a member that waits for
// its core keeps the others spinning at oneDNN's barriers for a whole time slice. Here a call takes its turn (`take_turn`),
// and the seats of its team go first to threads of XLA's own pool, which has nothing better to do then; threads of
// this library are a reserve for the seats that XLA's leave empty, so that a team is complete in the end even where
// XLA's threads wait for each other. Seated threads spin for the duration of the call, so that a recurrent network's
// hundreds of short regions follow each other without a sleep, and are XLA's again after it.
#pragma once
#include <cstdint>

namespace pool {

using Task = void (*)(void* data);
// Runs a task on another thread soon, or returns false.
using Schedule = bool (*)(void* context, Task task, void* data);

// Makes the reserve of a team of that size. A seated thread that finds nothing to do for `spin_us` microseconds sleeps.
// Returns the size of the team, smaller where the system gives fewer threads; later calls change nothing.
int start(int threads, int spin_us);
int threads();

// False after a fork, whose child has no threads.
bool alive();

// Holds the team for one call. Calls from several threads take turns, each with all the cores; those that wait lend
// their threads. Without `schedule` all seats are the reserve's.
void take_turn(Schedule schedule, void* context);
void give_turn();
bool has_turn();

// A parallel region: `region(data)` once for each part, of which `part()` is the number among `parts()`. The caller does
// part 0 between `open` and `close`; the thread has the turn.
void open(void (*region)(void*), void* data, int parts);
void close();
// Opens a region, does the caller's part and closes it; for a single part it wakes nobody.
void in_parallel(void (*region)(void*), void* data, int64_t parts);

// 0 and 1 outside of a region.
int part();
int parts();
// Waits for all the parts of the region.
void barrier();

}  // namespace pool
