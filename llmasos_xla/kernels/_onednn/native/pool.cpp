#include "pool.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <mutex>

namespace pool {
namespace {

constexpr int kMostThreads = 1024;
// A thread that spins offers its core to others after so many pauses, about 1 us. That costs little where nobody wants
// the core and saves much where the awaited thread does: with 10 runnable threads on 4 cores a small convolution takes
// 25 us instead of 300, with a team of 4 on one core 20 instead of 900.
constexpr unsigned kPausesPerYield = 32;
// How long XLA's threads have to take their seats before the reserve is called.
constexpr long long kArrivalCycles = 60'000;
constexpr long long kCyclesPerMicrosecond = 2400;  // near enough for a time-out

thread_local int my_part = 0, my_parts = 1;
thread_local bool my_turn = false;

int team = 1;
long long spin_cycles = 0;
std::mutex turn;
std::atomic<bool> forked{false};

struct Region {
  void (*run)(void*) = nullptr;
  void* data = nullptr;
  int parts = 1;
};

// Parts are claimed, not assigned: a member that is late finds its part done by another one. No deadlock comes of it: a
// part that waits at a barrier waits for parts that are claimed, or that a seated thread without one will claim.
Region region;
alignas(64) std::atomic<uint32_t> generation{0};  // of the region, and a futex
alignas(64) std::atomic<uint64_t> ticket{0};      // generation, next part to claim, parts: 32, 16 and 16 bits
alignas(64) std::atomic<int> done{0};
alignas(64) std::atomic<uint64_t> seats{0};  // session, open, taken: 32, 16 and 16 bits
alignas(64) std::atomic<int> asleep{0};      // seated threads
alignas(64) std::atomic<uint32_t> called{0};  // the reserve's futex
alignas(64) std::atomic<int> at_barrier{0};
alignas(64) std::atomic<uint32_t> barrier_phase{0};

long long now() { return static_cast<long long>(__rdtsc()); }

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake(std::atomic<uint32_t>& word, int most) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, most, nullptr, nullptr, 0);
}

void pause(unsigned pauses) {
  _mm_pause();
  if (pauses % kPausesPerYield == 0) sched_yield();
}

template <typename Done>
void spin_until(Done is_done) {
  for (unsigned pauses = 1; !is_done(); pauses++) pause(pauses);
}

uint32_t session_of(uint64_t s) { return static_cast<uint32_t>(s >> 32); }
bool is_open(uint64_t s) { return (s >> 16 & 0xffff) != 0; }
int taken(uint64_t s) { return static_cast<int>(s & 0xffff); }

bool take_seat(uint32_t session) {
  uint64_t s = seats.load(std::memory_order_acquire);
  while (session_of(s) == session && is_open(s) && taken(s) < team - 1)
    if (seats.compare_exchange_weak(s, s + 1, std::memory_order_acq_rel)) return true;
  return false;
}

bool in_session(uint32_t session) {
  const uint64_t s = seats.load(std::memory_order_acquire);
  return session_of(s) == session && is_open(s);
}

// Claims parts of the region and does them until none is left.
void work() {
  uint64_t t = ticket.load(std::memory_order_acquire);
  for (;;) {
    const int next = static_cast<int>(t >> 16 & 0xffff), parts = static_cast<int>(t & 0xffff);
    if (next >= parts) return;
    if (!ticket.compare_exchange_weak(t, t + 0x10000, std::memory_order_acq_rel)) continue;
    // The claim keeps the region open, so `region` stays as it is until `done` counts this part.
    my_part = next;
    my_parts = parts;
    region.run(region.data);
    my_part = 0;
    my_parts = 1;
    done.fetch_add(1, std::memory_order_release);
    t = ticket.load(std::memory_order_acquire);
  }
}

// Which session a core was last taken for by a member.
std::atomic<uint32_t> core_taken[CPU_SETSIZE];

bool take_core(int core, uint32_t session) {
  if (core < 0 || core >= CPU_SETSIZE) return true;
  uint32_t last = core_taken[core].load(std::memory_order_relaxed);
  return last != session && core_taken[core].compare_exchange_strong(last, session, std::memory_order_relaxed);
}

// The system now and then wakes two members on one core and takes milliseconds to part them, while the others spin. So
// the second one moves to a core that no member has. It stays free to be moved again.
void spread(uint32_t session) {
  if (take_core(sched_getcpu(), session)) return;
  cpu_set_t mine, target;
  if (sched_getaffinity(0, sizeof(mine), &mine) != 0) return;
  for (int core = 0; core < CPU_SETSIZE; core++) {
    if (!CPU_ISSET(core, &mine) || !take_core(core, session)) continue;
    CPU_ZERO(&target);
    CPU_SET(core, &target);
    if (sched_setaffinity(0, sizeof(target), &target) == 0) sched_setaffinity(0, sizeof(mine), &mine);
    return;
  }
}

// Keeps a seat until the session is over.
void attend(uint32_t session) {
  spread(session);
  while (in_session(session)) {
    const uint32_t seen = generation.load(std::memory_order_acquire);
    work();
    const long long since = now();
    for (unsigned pauses = 1; generation.load(std::memory_order_acquire) == seen && in_session(session); pauses++) {
      if (now() - since > spin_cycles) {
        asleep.fetch_add(1);
        if (generation.load() == seen) sleep_while(generation, seen);
        asleep.fetch_sub(1);
      }
      pause(pauses);
    }
  }
}

void help(void* data) {  // on a thread of XLA's pool
  const auto session = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(data));
  // A pool without threads runs its tasks on the caller, which would wait for itself.
  if (!my_turn && my_parts == 1 && take_seat(session)) attend(session);
}

void* reserve(void*) {
  _mm_setcsr(_mm_getcsr() | 0x8040);  // denormals are zeros, as on XLA's threads: a gradient that vanishes is not slow
  uint32_t seen = 0;
  for (;;) {
    sleep_while(called, seen);
    const uint32_t call = called.load(std::memory_order_acquire);
    if (call == seen) continue;
    seen = call;
    const uint32_t session = session_of(seats.load(std::memory_order_acquire));
    if (take_seat(session)) attend(session);
  }
  return nullptr;
}

bool add_to_reserve() {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the threads of the program
  pthread_t thread;
  const bool added = pthread_create(&thread, nullptr, reserve, nullptr) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!added) return false;
  pthread_setname_np(thread, "llmasos-onednn");
  pthread_detach(thread);
  return true;
}

void call_reserve() {
  const int missing = team - 1 - taken(seats.load(std::memory_order_acquire));
  if (missing <= 0) return;
  called.fetch_add(1);
  wake(called, missing);
}

void announce() {  // to seated threads that sleep
  if (asleep.load() > 0) wake(generation, kMostThreads);
}

}  // namespace

int start(int threads, int spin_us) {
  static std::once_flag once;
  std::call_once(once, [=] {
    spin_cycles = kCyclesPerMicrosecond * spin_us;
    pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
    const int wanted = threads < 1 ? 1 : threads > kMostThreads ? kMostThreads : threads;
    while (team < wanted && add_to_reserve()) team++;
  });
  return team;
}

int threads() { return team; }
bool has_turn() { return my_turn; }
bool alive() { return !forked.load(std::memory_order_relaxed); }

void take_turn(Schedule schedule, void* context) {
  while (!turn.try_lock()) {
    const uint32_t session = session_of(seats.load(std::memory_order_acquire));
    if (take_seat(session)) {
      attend(session);
    } else {
      turn.lock();
      break;
    }
  }
  my_turn = true;
  const uint32_t session = session_of(seats.load(std::memory_order_relaxed)) + 1;
  seats.store(static_cast<uint64_t>(session) << 32 | 1u << 16, std::memory_order_release);
  if (team == 1) return;
  take_core(sched_getcpu(), session);
  bool scheduled = schedule != nullptr;
  for (int i = 1; i < team && scheduled; i++)
    scheduled = schedule(context, help, reinterpret_cast<void*>(static_cast<uintptr_t>(session)));
  if (scheduled) {
    const long long since = now();
    while (taken(seats.load(std::memory_order_acquire)) < team - 1 && now() - since < kArrivalCycles) _mm_pause();
  }
  call_reserve();
}

void give_turn() {
  const uint64_t s = seats.load(std::memory_order_relaxed);
  seats.store(static_cast<uint64_t>(session_of(s)) << 32);
  generation.fetch_add(1);
  announce();
  my_turn = false;
  turn.unlock();
}

void open(void (*run)(void*), void* data, int parts) {
  region = {run, data, parts};
  done.store(0, std::memory_order_relaxed);
  const uint32_t g = generation.load(std::memory_order_relaxed) + 1;
  ticket.store(static_cast<uint64_t>(g) << 32 | 1u << 16 | static_cast<uint64_t>(parts), std::memory_order_release);
  generation.store(g);
  announce();
  my_part = 0;
  my_parts = parts;
}

void close() {
  const int others = my_parts - 1;
  work();
  spin_until([others] { return done.load(std::memory_order_acquire) == others; });
  my_part = 0;
  my_parts = 1;
}

void in_parallel(void (*region)(void*), void* data, int64_t parts) {
  if (parts == 1) return region(data);
  open(region, data, static_cast<int>(parts));
  region(data);
  close();
}

int part() { return my_part; }
int parts() { return my_parts; }

void barrier() {
  if (my_parts <= 1) return;
  const uint32_t phase = barrier_phase.load(std::memory_order_acquire);
  if (at_barrier.fetch_add(1, std::memory_order_acq_rel) + 1 == my_parts) {
    at_barrier.store(0, std::memory_order_relaxed);
    barrier_phase.store(phase + 1, std::memory_order_release);
  } else {
    spin_until([phase] { return barrier_phase.load(std::memory_order_acquire) != phase; });
  }
}

}  // namespace pool
