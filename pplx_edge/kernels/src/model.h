// A model file in memory: checked once, then only pointers into it.
#pragma once
#include "errors.h"
#include "kernels.h"

namespace pplx {

struct Layer {
  const float *input_norm, *post_norm, *q_norm, *k_norm;
  Weights qkv, o, gate_up, down;
};

class ModelFile {
 public:
  ~ModelFile();
  int open(const char* path, const ErrorText& error);                        // maps the file
  int adopt(const void* image, uint64_t bytes, const ErrorText& error);      // the caller keeps the memory

  // Whether neighboring weights k never add up to more than 128. Reads all weights.
  bool weights_fit_pairs(const Kernels& kernels) const;

  int bits;  // of the weights of projections
  int n_layers, width, n_heads, n_kv_heads, head_dim, vocab, max_tokens;
  int hidden, inner, half, head, query_width, key_width;  // padded sizes
  float head_eps, stream_eps;
  const int8_t* table;
  const float *table_scales, *final_norm, *cos, *sin;
  Layer* layers = nullptr;

 private:
  int parse(const uint8_t* data, uint64_t bytes, const ErrorText& error);

  void* mapped_ = nullptr;
  uint64_t mapped_bytes_ = 0;
};

}  // namespace pplx
