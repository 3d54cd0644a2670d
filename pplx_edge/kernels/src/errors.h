// Errors: a result code and one line of text in the caller's buffer.
#pragma once
#include <cstdarg>
#include <cstdio>

#include "pplx_kernels.h"

namespace pplx {

struct ErrorText {
  char* text;
  uint64_t bytes;

  __attribute__((format(printf, 3, 4))) int fail(int result, const char* format, ...) const {
    if (text && bytes) {
      va_list arguments;
      va_start(arguments, format);
      vsnprintf(text, bytes, format, arguments);
      va_end(arguments);
    }
    return result;
  }
};

}  // namespace pplx
