// Objects in memory from malloc, so that the library needs no C++ library at run time.
#pragma once
#include <cstdlib>
#include <new>

namespace pplx {

// Returns null if there is no memory.
template <class T, class... A> T* make(A&&... arguments) {
  void* memory = std::malloc(sizeof(T));
  return memory ? ::new (memory) T{static_cast<A&&>(arguments)...} : nullptr;
}

template <class T> void destroy(T* object) {
  if (!object) return;
  object->~T();
  std::free(object);
}

}  // namespace pplx
