// The encoder: packed rows of tokens through all layers, in tasks over blocks of tokens, heads and columns.
#pragma once
#include "model.h"
#include "pool.h"

namespace pplx {

// Rows of token ids: row r is [starts[r], starts[r + 1]).
struct Rows {
  const int32_t* ids;
  const int64_t* starts;
  int64_t n_rows;

  int64_t n_tokens() const { return starts[n_rows]; }
};

// The phases of a call, between which all threads wait for each other. Names are in api.cpp.
enum Phase { kEmbedding, kNorms, kQkv, kPackedKeys, kAttention, kQuantized, kOutput, kGateUp, kDown, kMeans, kPhases };

// The seconds of phases.
class PhaseClock {
 public:
  PhaseClock() { last_ = now(); }
  // Ends a phase, which began when the one before it ended.
  void end(Phase phase) {
    const double time = now();
    seconds[phase] += time - last_;
    last_ = time;
  }
  double seconds[kPhases] = {};

 private:
  static double now();
  double last_;
};

// The buffers of one call, in one allocation. Some share their memory: keys and values, attended and inner; queries and wide; tokens
// and packed.
class Buffers {
 public:
  Buffers() = default;
  ~Buffers();
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;

  static uint64_t bytes_for(const ModelFile&, const Kernels&, int64_t n_rows, int64_t n_tokens, int threads);
  bool fit(const ModelFile&, const Kernels&, int64_t n_rows, int64_t n_tokens, int threads);  // false if there is no memory
  uint64_t bytes() const { return bytes_; }

  float *residual, *keys, *values, *attended, *inner;
  Codes tokens, queries, wide;  // codes of the stream; of queries; of attention's output and of the MLP's inner activations
  int32_t* positions;
  uint8_t *bad_tokens, *bad_rows;
  KeyBlocks packed;             // of all rows and key heads, each row at key_offset(row)
  int64_t *key_places, *block_places;
  Scratch* scratch;

 private:
  uint64_t lay_out(const ModelFile&, const Kernels&, int64_t n_rows, int64_t n_tokens, int threads, uint8_t* base);

  void* memory_ = nullptr;
  uint64_t bytes_ = 0;
};

class Encoder {
 public:
  Encoder(const ModelFile& model, const Kernels& kernels, Buffers& buffers, Team& team, const Rows& rows, PhaseClock& clock);

  void embed();
  void layer(int index);
  void final_norm(float* states);  // [n_tokens, hidden], padded
  void mark_bad(float* states);    // rows with a value that is not finite become NaN

 private:
  template <class F> void over_blocks(int64_t n, int64_t size, const F& task);
  void attention(const Layer&);
  void mlp(const Layer&, int64_t from, int64_t to);
  void project(Codes input, int64_t from, int64_t to, const Weights&, Phase);
  Codes at(Codes codes, int64_t row) const;

  const ModelFile& m_;
  const Kernels& k_;
  Buffers& b_;
  Team& team_;
  const Rows& rows_;
  PhaseClock& clock_;
  int64_t n_tokens_;
};

}  // namespace pplx
