// The threads of a process, shared by all models. They are created on first use, and again in the child of a fork.
#pragma once
#include <cstdint>

namespace pplx {

// The number of processors that this process may use.
int default_threads();

// A team of threads for one call: the caller and helpers from the pool. Calls with helpers take turns.
class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return threads_; }

  // Run task(context, index, thread) for each index in [0, count). Threads claim tasks; all are done when this returns.
  void run(int64_t count, void (*task)(void* context, int64_t index, int thread), void* context);

  template <class F> void each(int64_t count, const F& task) {
    run(count, [](void* f, int64_t index, int thread) { (*static_cast<const F*>(f))(index, thread); },
        const_cast<void*>(static_cast<const void*>(&task)));
  }

 private:
  int threads_;
};

}  // namespace pplx
