#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <new>

#include "float_modes.h"

namespace pplx {
namespace {

constexpr int kMostHelpers = 255;
constexpr int kSpins = 4000;  // some 20 to 50 microseconds before a helper sleeps

// `round` is a counter and, in the low 8 bits, how many helpers take part: those with lower numbers. The caller waits for these,
// so nothing else changes under them; a helper that does not take part reads only this word.
struct Pool {
  pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;  // held by the call that uses the helpers
  pthread_mutex_t sleep = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
  int started = 0;
  std::atomic<uint64_t> round{0};
  std::atomic<int> busy{0}, sleeping{0};
  std::atomic<int64_t> next{0};
  int64_t count = 0;
  void (*task)(void*, int64_t, int) = nullptr;
  void* context = nullptr;

  void work(int thread) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i, thread);
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
  delete self;
  const FloatModes modes;
  for (uint64_t seen = 0;;) {
    for (int i = 0; i < kSpins && pool.round.load(std::memory_order_acquire) == seen; i++) pause_briefly();
    if (pool.round.load(std::memory_order_acquire) == seen) {
      pthread_mutex_lock(&pool.sleep);
      pool.sleeping.fetch_add(1);
      while (pool.round.load() == seen) pthread_cond_wait(&pool.wake, &pool.sleep);
      pool.sleeping.fetch_sub(1);
      pthread_mutex_unlock(&pool.sleep);
    }
    seen = pool.round.load(std::memory_order_acquire);
    if (number < static_cast<int>(seen & 255)) {
      pool.work(number + 1);
      pool.busy.fetch_sub(1, std::memory_order_release);
    }
  }
}

// The child of a fork has none of the threads, and may have found the mutexes locked: it forgets the pool.
void forget_pool() { the_pool.store(nullptr); }

Pool* pool_of_process() {
  pthread_once(&fork_handler, [] { pthread_atfork(nullptr, nullptr, forget_pool); });
  Pool* pool = the_pool.load();
  if (pool) return pool;
  Pool* made = new (std::nothrow) Pool;
  if (!made) return nullptr;
  if (the_pool.compare_exchange_strong(pool, made)) return made;
  delete made;
  return pool;
}

// Start helpers up to this number; fewer if the system refuses. Signals are left to the program's own threads.
int start_helpers(Pool& pool, int wanted) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (; pool.started < wanted; pool.started++) {
    Helper* helper = new (std::nothrow) Helper{&pool, pool.started};
    pthread_t thread;
    if (!helper || pthread_create(&thread, nullptr, help, helper)) {
      delete helper;
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
  const int helpers = count - 1 < threads_ - 1 ? static_cast<int>(count) - 1 : threads_ - 1;
  if (helpers < 1) {
    for (int64_t i = 0; i < count; i++) task(context, i, 0);
    return;
  }
  Pool& pool = *the_pool.load();
  pool.task = task;
  pool.context = context;
  pool.count = count;
  pool.next.store(0, std::memory_order_relaxed);
  pool.busy.store(helpers, std::memory_order_relaxed);
  pool.round.store(((pool.round.load(std::memory_order_relaxed) >> 8) + 1) << 8 | static_cast<uint64_t>(helpers));
  if (pool.sleeping.load() > 0) {
    pthread_mutex_lock(&pool.sleep);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.sleep);
  }
  pool.work(0);
  for (int spins = 0; pool.busy.load(std::memory_order_acquire) > 0; spins++)
    if (spins < kSpins) pause_briefly();
    else sched_yield();
}

}  // namespace pplx
