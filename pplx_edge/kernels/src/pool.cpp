#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>

#include "float_modes.h"
#include "memory.h"

namespace pplx {
namespace {

constexpr int kMostHelpers = 255;
constexpr int kSpins = 4000;  // some 20 to 50 microseconds before a helper sleeps

// Which task is next, in one word: the number of the round (a call of Team::run), how many helpers may take part (those with lower
// numbers), and the index of the task. A thread claims a task by counting the index up in a compare-and-swap. Its success says that
// the round is still the one that was read, and the round cannot end before its claimed tasks are done; so a helper that wakes up late
// cannot confuse rounds, and nobody waits for a helper that has claimed nothing.
using Ticket = uint64_t;
constexpr int kIndexBits = 28, kHelperBits = 8;
constexpr Ticket kMostIndex = (Ticket{1} << kIndexBits) - 1;  // also the index of a round that is not open yet
inline Ticket index_of(Ticket t) { return t & kMostIndex; }
inline int helpers_of(Ticket t) { return static_cast<int>(t >> kIndexBits & ((1 << kHelperBits) - 1)); }
inline Ticket round_of(Ticket t) { return t >> (kIndexBits + kHelperBits); }
inline bool is_open(Ticket t) { return index_of(t) != kMostIndex; }
// The last round that a helper which reads this has seen: a round that is not open yet must not count, or the helper would miss it.
inline Ticket last_round(Ticket t) { return is_open(t) ? round_of(t) : round_of(t) - 1; }
inline bool is_new(Ticket t, Ticket seen) { return is_open(t) && round_of(t) != seen; }
inline Ticket ticket_of(Ticket round, int helpers, Ticket index) {
  return round << (kIndexBits + kHelperBits) | static_cast<Ticket>(helpers) << kIndexBits | index;
}

struct Pool {
  pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;  // held by the call that uses the helpers
  pthread_mutex_t sleep = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
  int started = 0;
  std::atomic<Ticket> ticket{kMostIndex};
  std::atomic<Ticket> count{0}, done{0};
  std::atomic<int> sleeping{0};
  void (*task)(void*, int64_t, int) = nullptr;
  void* context = nullptr;

  // Run tasks until there are none for this thread: 0 is the caller, others are helpers. Returns the last round that it saw.
  Ticket work(int thread) {
    for (Ticket t = ticket.load();;) {
      if (thread > helpers_of(t) || index_of(t) >= count.load()) return last_round(t);
      if (!ticket.compare_exchange_weak(t, t + 1)) continue;
      task(context, static_cast<int64_t>(index_of(t)), thread);
      done.fetch_add(1, std::memory_order_release);
      t = ticket.load();
    }
  }
};

struct Helper {
  Pool* pool;
  int number;
};

std::atomic<Pool*> the_pool{nullptr};
pthread_once_t fork_handler = PTHREAD_ONCE_INIT;

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void* help(void* argument) {
  Helper* self = static_cast<Helper*>(argument);
  Pool& pool = *self->pool;
  const int number = self->number;
  destroy(self);
  const FloatModes modes;
  for (;;) {
    const Ticket seen = pool.work(number + 1);
    for (int i = 0; i < kSpins && !is_new(pool.ticket.load(), seen); i++) pause_briefly();
    if (is_new(pool.ticket.load(), seen)) continue;
    pthread_mutex_lock(&pool.sleep);
    pool.sleeping.fetch_add(1);
    while (!is_new(pool.ticket.load(), seen)) pthread_cond_wait(&pool.wake, &pool.sleep);
    pool.sleeping.fetch_sub(1);
    pthread_mutex_unlock(&pool.sleep);
  }
}

// The child of a fork has none of the threads, and may have found the mutexes locked: it forgets the pool.
void forget_pool() { the_pool.store(nullptr); }

Pool* pool_of_process() {
  pthread_once(&fork_handler, [] { pthread_atfork(nullptr, nullptr, forget_pool); });
  Pool* pool = the_pool.load();
  if (pool) return pool;
  Pool* made = make<Pool>();
  if (!made) return nullptr;
  if (the_pool.compare_exchange_strong(pool, made)) return made;
  destroy(made);
  return pool;
}

// Start helpers up to this number; fewer if the system refuses. Signals are left to the program's own threads.
int start_helpers(Pool& pool, int wanted) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (; pool.started < wanted; pool.started++) {
    Helper* helper = make<Helper>(&pool, pool.started);
    pthread_t thread;
    if (!helper || pthread_create(&thread, nullptr, help, helper)) {
      destroy(helper);
      break;
    }
    pthread_detach(thread);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return pool.started < wanted ? pool.started : wanted;
}

}  // namespace

int default_threads() {
#if defined(__linux__)
  cpu_set_t set;
  if (!sched_getaffinity(0, sizeof set, &set)) {
    const int n = CPU_COUNT(&set);
    return n < 1 ? 1 : n > kMostHelpers + 1 ? kMostHelpers + 1 : n;
  }
#endif
  const long n = sysconf(_SC_NPROCESSORS_ONLN);
  return n < 1 ? 1 : n > kMostHelpers + 1 ? kMostHelpers + 1 : static_cast<int>(n);
}

Team::Team(int threads) : threads_(threads < 1 ? 1 : threads > kMostHelpers + 1 ? kMostHelpers + 1 : threads) {
  if (threads_ == 1) return;
  Pool* pool = pool_of_process();
  if (!pool) {
    threads_ = 1;
    return;
  }
  pthread_mutex_lock(&pool->turn);
  threads_ = start_helpers(*pool, threads_ - 1) + 1;
  if (threads_ == 1) pthread_mutex_unlock(&pool->turn);
}

Team::~Team() {
  if (threads_ > 1) pthread_mutex_unlock(&the_pool.load()->turn);
}

void Team::run(int64_t count, void (*task)(void*, int64_t, int), void* context) {
  if (threads_ == 1 || count < 2 || static_cast<Ticket>(count) >= kMostIndex) {
    for (int64_t i = 0; i < count; i++) task(context, i, 0);
    return;
  }
  Pool& pool = *the_pool.load();
  const int helpers = count <= threads_ ? static_cast<int>(count) - 1 : threads_ - 1;
  const Ticket round = round_of(pool.ticket.load() + (kMostIndex + 1) * (Ticket{1} << kHelperBits));
  pool.ticket.store(ticket_of(round, helpers, kMostIndex));
  pool.task = task;
  pool.context = context;
  pool.count.store(static_cast<Ticket>(count));
  pool.done.store(0);
  pool.ticket.store(ticket_of(round, helpers, 0));
  if (pool.sleeping.load() > 0) {
    pthread_mutex_lock(&pool.sleep);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.sleep);
  }
  pool.work(0);
  for (int spins = 0; pool.done.load(std::memory_order_acquire) < static_cast<Ticket>(count); spins++)
    if (spins < kSpins) pause_briefly();
    else sched_yield();
}

}  // namespace pplx
