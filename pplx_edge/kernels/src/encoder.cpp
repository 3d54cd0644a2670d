#include "encoder.h"

#include <time.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

namespace pplx {
namespace {

constexpr int64_t kMlpRows = 1024;  // rows whose inner activations are kept at once

Weights columns_of(const Weights& w, int from, int count) {
  return {w.panels + from / kLanes * w.panel_bytes(), w.scales + from, w.sums + from, count, w.depth, w.bits};
}

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace

double PhaseClock::now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

Buffers::~Buffers() { std::free(memory_); }

// Lay all buffers out from `base`, or only count their bytes if it is null.
uint64_t Buffers::lay_out(const ModelFile& m, const Kernels& k, int64_t n_rows, int64_t n_tokens, int threads, uint8_t* base) {
  uint64_t used = 0;
  auto take = [&]<class T>(T*& place, uint64_t count) {
    if (base) place = reinterpret_cast<T*>(base + used);
    used += padded(count * sizeof(T));
  };
  auto take_codes = [&](Codes& codes, uint64_t rows, uint64_t row_bytes) {
    codes.row_bytes = row_bytes;
    take(codes.codes, (rows + kSpareRows) * row_bytes);
    take(codes.scales, rows);
  };
  // Takes what the largest of these needs, of which only one is in use at a time.
  auto take_one_of = [&](auto&&... choices) {
    const uint64_t before = used;
    uint64_t end = used;
    auto lay = [&](auto&& choice) {
      used = before;
      choice();
      end = used > end ? used : end;
    };
    (lay(choices), ...);
    used = end;
  };
  const uint64_t n = n_tokens, heads = m.n_heads, key_heads = m.n_kv_heads;
  const uint64_t mlp_rows = least(n_tokens, kMlpRows);
  // Rows are padded to 64 keys, so every row may add 63.
  const uint64_t key_rows = padded(n) + uint64_t{63} * n_rows, blocks = n / kKeyBlock + n_rows;
  take(residual, n * m.hidden);
  take_one_of([&] { take(keys, n * m.key_width); take(values, n * m.key_width); }, [&] { take(attended, n * m.query_width); },
              [&] { take(inner, mlp_rows * m.inner); });
  take_one_of([&] { take_codes(queries, n * heads, static_cast<uint64_t>(m.head) * k.attention_bytes); },
              [&] { take_codes(wide, n, row_bytes(most(m.query_width, m.inner), k.code_bytes)); });
  take_one_of([&] { take_codes(tokens, n, row_bytes(m.hidden, k.code_bytes)); }, [&] {
    take(packed.keys, key_rows * m.key_width);
    take(packed.values, key_rows * m.key_width);
    take(packed.key_scales, key_rows * key_heads);
    take(packed.key_sums, key_rows * key_heads);
    take(packed.value_scales, blocks * m.key_width);
    take(packed.value_sums, blocks * m.key_width);
  });
  take(positions, n);
  take(bad_tokens, n);
  take(bad_rows, n_rows);
  take(key_places, n_rows);
  take(block_places, n_rows);
  take(scratch, threads);
  if (base) for (int t = 0; t < threads; t++) scratch[t] = Scratch{};
  const uint64_t sums = most((2 * kBlockRows + kSpareRows) * most(kKeyBlock, m.head),
                             (block_rows(m.bits) + kSpareRows) * most(kBlockColumns, m.head));
  const uint64_t deepest = most(most(m.hidden, m.inner), most(m.query_width, kKeyBlock));
  for (int t = 0; t < threads; t++) {
    Scratch counted;
    Scratch& s = base ? scratch[t] : counted;
    take(s.sums, sums);
    take(s.floats, static_cast<uint64_t>(kBlockRows) * m.head);
    take(s.codes, (2 * kBlockRows + kSpareRows) * row_bytes(kKeyBlock, k.attention_bytes));
    take(s.panel, 16 * deepest);
    take(s.unpacked, m.bits == 8 ? 0 : kUnpackedBytes);
  }
  return used;
}

uint64_t Buffers::bytes_for(const ModelFile& m, const Kernels& k, int64_t n_rows, int64_t n_tokens, int threads) {
  return Buffers().lay_out(m, k, n_rows, n_tokens, threads, nullptr);
}

bool Buffers::fit(const ModelFile& m, const Kernels& k, int64_t n_rows, int64_t n_tokens, int threads) {
  const uint64_t needed = bytes_for(m, k, n_rows, n_tokens, threads);
  if (needed > bytes_) {
    std::free(memory_);
    memory_ = nullptr;
    bytes_ = 0;
    if (posix_memalign(&memory_, PPLX_ALIGNMENT, needed)) {
      memory_ = nullptr;
      return false;
    }
    bytes_ = needed;
  }
  lay_out(m, k, n_rows, n_tokens, threads, static_cast<uint8_t*>(memory_));
  return true;
}

Encoder::Encoder(const ModelFile& model, const Kernels& kernels, Buffers& buffers, Team& team, const Rows& rows, PhaseClock& clock)
    : m_(model), k_(kernels), b_(buffers), team_(team), rows_(rows), clock_(clock), n_tokens_(rows.n_tokens()) {
  std::memset(b_.bad_tokens, 0, n_tokens_);
  std::memset(b_.bad_rows, 0, rows.n_rows);
  int64_t keys = 0, blocks = 0;
  for (int64_t r = 0; r < rows.n_rows; r++) {
    const int64_t n = rows.starts[r + 1] - rows.starts[r];
    for (int64_t t = 0; t < n; t++) b_.positions[rows.starts[r] + t] = static_cast<int32_t>(t);
    b_.key_places[r] = keys;
    b_.block_places[r] = blocks;
    keys += padded(n);
    blocks += (n + kKeyBlock - 1) / kKeyBlock;
  }
}

Codes Encoder::at(Codes codes, int64_t row) const {
  return {codes.codes + row * codes.row_bytes, codes.scales + row, codes.row_bytes};
}

// task(first, count, thread) for blocks of [0, n)
template <class F> void Encoder::over_blocks(int64_t n, int64_t size, const F& task) {
  team_.each((n + size - 1) / size, [&](int64_t i, int thread) {
    task(i * size, static_cast<int>(least(size, n - i * size)), thread);
  });
}

void Encoder::embed() {
  over_blocks(n_tokens_, 64, [&](int64_t i, int n, int) {
    k_.embed(m_.table, m_.table_scales, rows_.ids + i, n, m_.hidden, b_.residual + i * m_.hidden);
  });
  clock_.end(kEmbedding);
}

void Encoder::layer(int index) {
  const Layer& layer = m_.layers[index];
  over_blocks(n_tokens_, 16, [&](int64_t i, int n, int) {
    k_.norm_quantize(b_.residual + i * m_.hidden, n, m_.width, m_.hidden, layer.input_norm, m_.stream_eps, at(b_.tokens, i),
                     b_.bad_tokens + i);
  });
  clock_.end(kNorms);
  attention(layer);
  over_blocks(n_tokens_, 16, [&](int64_t i, int n, int) {
    k_.quantize(b_.attended + i * m_.query_width, n, m_.query_width, at(b_.wide, i), b_.bad_tokens + i);
  });
  clock_.end(kQuantized);
  project(b_.wide, 0, n_tokens_, layer.o, kOutput);
  over_blocks(n_tokens_, 16, [&](int64_t i, int n, int) {
    k_.norm_quantize(b_.residual + i * m_.hidden, n, m_.width, m_.hidden, layer.post_norm, m_.stream_eps, at(b_.tokens, i),
                     b_.bad_tokens + i);
  });
  clock_.end(kNorms);
  for (int64_t from = 0; from < n_tokens_; from += kMlpRows) mlp(layer, from, least(from + kMlpRows, n_tokens_));
}

void Encoder::attention(const Layer& layer) {
  const int group = m_.n_heads / m_.n_kv_heads, heads = m_.n_heads + 2 * m_.n_kv_heads;
  const int64_t block = block_rows(m_.bits), blocks = (n_tokens_ + block - 1) / block;
  const HeadNorm q_norm{layer.q_norm, m_.head_eps, m_.head_dim, m_.half, m_.cos, m_.sin};
  const HeadNorm k_norm{layer.k_norm, m_.head_eps, m_.head_dim, m_.half, m_.cos, m_.sin};
  // Scores are exponents of 2.
  const float factor = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(m_.head_dim)));
  team_.each(blocks * heads, [&](int64_t task, int thread) {  // neighboring tasks share the weights of a head
    const int head = static_cast<int>(task / blocks);
    const int64_t i = task % blocks * block;
    const int n = static_cast<int>(least(block, n_tokens_ - i));
    const Weights w = columns_of(layer.qkv, head * m_.head, m_.head);
    const Codes x = at(b_.tokens, i);
    Scratch& scratch = b_.scratch[thread];
    if (head < m_.n_heads) {  // queries of a key head lie together: [key heads][tokens][group]
      const Codes out = at(b_.queries, (head / group * n_tokens_ + i) * group + head % group);
      k_.queries(x, n, w, q_norm, b_.positions + i, factor, out, group, scratch);
    } else {
      const int other = head - m_.n_heads, place = other % m_.n_kv_heads * m_.head;
      if (other < m_.n_kv_heads)
        k_.keys(x, n, w, k_norm, b_.positions + i, b_.keys + i * m_.key_width + place, m_.key_width, scratch);
      else
        k_.values(x, n, w, b_.values + i * m_.key_width + place, m_.key_width, scratch);
    }
  });
  clock_.end(kQkv);

  auto packed = [&](int64_t row, int head) {
    const int64_t key_rows = padded(rows_.starts[row + 1] - rows_.starts[row]);
    const int64_t blocks_of_row = (key_rows + kKeyBlock - 1) / kKeyBlock;
    const int64_t first = b_.key_places[row] * m_.n_kv_heads + head * key_rows;
    const int64_t block = (b_.block_places[row] * m_.n_kv_heads + head * blocks_of_row) * m_.head;
    const KeyBlocks& all = b_.packed;
    return KeyBlocks{all.keys + first * m_.head, all.key_scales + first, all.key_sums + first, all.values + first * m_.head,
                     all.value_scales + block, all.value_sums + block};
  };
  team_.each(rows_.n_rows * m_.n_kv_heads, [&](int64_t task, int thread) {
    const int64_t row = task / m_.n_kv_heads, start = rows_.starts[row], n = rows_.starts[row + 1] - start;
    const int head = static_cast<int>(task % m_.n_kv_heads);
    const int64_t place = start * m_.key_width + head * m_.head;
    if (n && !k_.pack_keys(b_.keys + place, b_.values + place, m_.key_width, static_cast<int>(n), m_.head, packed(row, head),
                           b_.scratch[thread]))
      __atomic_store_n(b_.bad_rows + row, 1, __ATOMIC_RELAXED);
  });
  clock_.end(kPackedKeys);

  // One task is a row's block of tokens and a key head: `group` queries per token.
  const int64_t block_tokens = most(1, kBlockRows / group);
  int64_t tasks = 0;
  for (int64_t r = 0; r < rows_.n_rows; r++) tasks += (rows_.starts[r + 1] - rows_.starts[r] + block_tokens - 1) / block_tokens;
  team_.each(tasks * m_.n_kv_heads, [&](int64_t task, int thread) {
    const int head = static_cast<int>(task % m_.n_kv_heads);
    int64_t block = task / m_.n_kv_heads, row = 0;
    for (;; row++) {
      const int64_t blocks_of_row = (rows_.starts[row + 1] - rows_.starts[row] + block_tokens - 1) / block_tokens;
      if (block < blocks_of_row) break;
      block -= blocks_of_row;
    }
    const int64_t start = rows_.starts[row], n = rows_.starts[row + 1] - start, first = block * block_tokens;
    const int64_t token = start + first;
    const int count = static_cast<int>(least(block_tokens, n - first));
    for (int q = 0; q < count * group; q += kBlockRows) {  // more than one step only if a key head has more queries than a block
      const int queries = static_cast<int>(least(kBlockRows, count * group - q));
      k_.attend(at(b_.queries, (head * n_tokens_ + token) * group + q), queries, group, packed(row, head), static_cast<int>(n), m_.head,
                b_.attended + token * m_.query_width + (head * group + q) * m_.head, m_.query_width, b_.scratch[thread]);
    }
  });
  clock_.end(kAttention);
}

void Encoder::project(Codes input, int64_t from, int64_t to, const Weights& w, Phase phase) {
  const int64_t block = block_rows(m_.bits), rows = (to - from + block - 1) / block;
  const int64_t columns = (w.columns + kBlockColumns - 1) / kBlockColumns;
  team_.each(rows * columns, [&](int64_t task, int thread) {
    const int64_t i = from + task % rows * block, c = task / rows * kBlockColumns;
    k_.project_add(at(input, i), static_cast<int>(least(block, to - i)),
                   columns_of(w, static_cast<int>(c), static_cast<int>(least(kBlockColumns, w.columns - c))),
                   b_.residual + i * m_.hidden + c, m_.hidden, b_.scratch[thread]);
  });
  clock_.end(phase);
}

void Encoder::mlp(const Layer& layer, int64_t from, int64_t to) {
  const int64_t block = block_rows(m_.bits), rows = (to - from + block - 1) / block;
  const int64_t columns = (2 * m_.inner + kBlockColumns - 1) / kBlockColumns;
  team_.each(rows * columns, [&](int64_t task, int thread) {
    const int64_t i = from + task % rows * block, c = task / rows * kBlockColumns;
    k_.gate_up(at(b_.tokens, i), static_cast<int>(least(block, to - i)),
               columns_of(layer.gate_up, static_cast<int>(c), static_cast<int>(least(kBlockColumns, 2 * m_.inner - c))),
               b_.inner + (i - from) * m_.inner + c / 2, m_.inner, b_.scratch[thread]);
  });
  clock_.end(kGateUp);
  over_blocks(to - from, 16, [&](int64_t i, int n, int) {
    k_.quantize(b_.inner + i * m_.inner, n, m_.inner, at(b_.wide, from + i), b_.bad_tokens + from + i);
  });
  clock_.end(kQuantized);
  project(b_.wide, from, to, layer.down, kDown);
}

void Encoder::final_norm(float* states) {
  over_blocks(n_tokens_, 16, [&](int64_t i, int n, int) {
    k_.norm(b_.residual + i * m_.hidden, n, m_.width, m_.hidden, m_.final_norm, m_.stream_eps, states + i * m_.hidden);
  });
  clock_.end(kNorms);
}

void Encoder::mark_bad(float* states) {
  for (int64_t r = 0; r < rows_.n_rows; r++) {
    const int64_t from = rows_.starts[r], to = rows_.starts[r + 1];
    bool bad = b_.bad_rows[r];
    for (int64_t t = from; t < to; t++) bad |= b_.bad_tokens[t] != 0;
    if (bad)
      for (int64_t i = from * m_.hidden; i < to * m_.hidden; i++) states[i] = NAN;
  }
}

}  // namespace pplx
