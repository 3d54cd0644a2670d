// The table of functions that an instruction set provides. All of them compute the same bits.
//
// Matrices of activations are "codes": int8 rows quantized with one scale per row, in the format of the instruction set
// (`code_bytes` or `attention_bytes` per code, see the tiles). Rows of codes are `row_bytes(n)` apart; buffers of codes have kSpareRows more rows.
#pragma once
#include <cstddef>
#include <cstdint>

namespace pplx {

constexpr int kLanes = 16;         // columns of a panel of weights, and virtual lanes of float arithmetic
constexpr int kPad = 64;           // sizes are padded to a multiple of this
constexpr int kSpareRows = 32;     // rows after the last that a kernel may read or write
constexpr int kMaxColumns = 65536; // of a product's inner dimension: sums of 255 * 127 fit into int32
constexpr int kKeyBlock = 256;     // keys per step of attention
constexpr int kMaxHead = 512;      // padded head size
constexpr int kBlockRows = 48;     // rows of a block of tokens or queries
constexpr int kPackedBlockRows = 256;  // rows of a block of tokens that share the work of unpacking 4-bit weights
constexpr int kBlockColumns = 128; // columns of a block of weights
constexpr int kGroup = 32;         // neighboring 4-bit weights of a column that share a multiplier and a zero point
constexpr int kUnpackedBytes = 16 << 10;  // of unpacked weights at a time, which fit into the first cache

constexpr int block_rows(int bits) { return bits == 8 ? kBlockRows : kPackedBlockRows; }

inline size_t padded(size_t n, size_t to = kPad) { return (n + to - 1) / to * to; }

// The weights of a product: V4x16 panels of 8 or 4 bits, and a scale and a sum of (unpacked) codes per column.
struct Weights {
  const int8_t* panels;
  const float* scales;
  const int32_t* sums;
  int columns, depth;  // N and K
  int bits = 8;

  size_t panel_bytes() const { return bits == 8 ? size_t{kLanes} * depth : size_t{kLanes} * depth / 2 + size_t{kLanes} * depth / kGroup; }
};

// Rows of activation codes.
struct Codes {
  uint8_t* codes;
  float* scales;
  size_t row_bytes;
};

// Normalized, rotated heads are quantized (queries), or kept as floats until keys of a whole row are known.
struct HeadNorm {
  const float* weight;
  float eps;
  int head_dim, half;
  const float *cos, *sin;     // [max_tokens, half]
};

// The keys and values of one row and one key head.
struct KeyBlocks {
  int8_t* keys;         // V4x16 panels of 16 keys, [padded(n), head]
  float* key_scales;    // [padded(n)]
  int32_t* key_sums;
  int8_t* values;       // for each block of keys V4x16 panels of 16 components, [head, keys of the block]
  float* value_scales;  // for each block [head]
  int32_t* value_sums;
};

// What a thread needs for one task.
struct Scratch {
  int32_t* sums;        // of attention [2 * kBlockRows + kSpareRows][max(kKeyBlock, head)], of projections
                        // [block_rows + kSpareRows][max(kBlockColumns, head)]
  float* floats;        // [kBlockRows * kMaxHead]
  uint8_t* codes;       // [2 * kBlockRows + kSpareRows] rows of codes of kKeyBlock
  int16_t* panel;       // one panel of weights of kMaxColumns, widened
  int8_t* unpacked;     // [kUnpackedBytes] if weights have 4 bits
};

struct Kernels {
  const char* name;
  int code_bytes;       // of the codes of projections
  int attention_bytes;  // of the codes of queries and of attention's weights
  const Kernels* any_weights;  // if these need weights whose neighbors k never add up to more than 128: those that do not; else null

  // x[rows][hidden] = rows of the table
  void (*embed)(const int8_t* table, const float* scales, const int32_t* ids, int rows, int hidden, float* x);
  // RMS norm of each row, quantized. `width` is the true, `hidden` the padded size. Sets bad[i] if a row is not finite.
  void (*norm_quantize)(const float* x, int rows, int width, int hidden, const float* weight, float eps, Codes out, uint8_t* bad);
  void (*quantize)(const float* x, int rows, int columns, Codes out, uint8_t* bad);
  void (*norm)(const float* x, int rows, int width, int hidden, const float* weight, float eps, float* out);

  // One head of the q, k or v projection for a block of rows.
  void (*queries)(Codes x, int rows, Weights head, const HeadNorm& norm, const int32_t* positions, float factor, Codes out, size_t out_step, Scratch&);
  void (*keys)(Codes x, int rows, Weights head, const HeadNorm& norm, const int32_t* positions, float* out, size_t out_step, Scratch&);
  void (*values)(Codes x, int rows, Weights head, float* out, size_t out_step, Scratch&);
  // Quantize the keys and values [n][step] of one row and one key head.
  // Returns false if one is not finite.
  bool (*pack_keys)(const float* keys, const float* values, size_t step, int n, int head, KeyBlocks out, Scratch&);
  // Attention of `rows` query rows against n keys; query i's output goes to out + (i / group) * out_step + (i % group) * head.
  void (*attend)(Codes queries, int rows, int group, KeyBlocks keys, int n, int head, float* out, size_t out_step, Scratch&);

  // x[rows][..] += product, for a block of rows and columns
  void (*project_add)(Codes a, int rows, Weights w, float* x, size_t step, Scratch&);
  // out[rows][..] = silu(gate) * up, for a block of panels of gate and up
  void (*gate_up)(Codes a, int rows, Weights w, float* out, size_t step, Scratch&);
  // out[columns] = mean of rows, summed in float64
  void (*mean)(const float* x, int rows, size_t step, int columns, float* out);

  // Unpack the steps [from, from + n) of k of a panel of 4 bits with w.depth steps to n steps of V4x16; multiples of kPad.
  void (*unpack)(const int8_t* panel, int depth, int from, int n, int8_t* out);

  // For tests: the exact product c[rows][columns], and 16 integers in -127..127 as codes.
  void (*product)(Codes a, int rows, Weights w, int32_t* c, size_t step, Scratch&);
  void (*encode)(const int32_t* values, uint8_t* codes);
  void (*attention_product)(Codes a, int rows, Weights w, int32_t* c, size_t step, Scratch&);
  void (*encode_attention)(const int32_t* values, uint8_t* codes);
};

// The distance of rows of codes: not a multiple of large powers of 2, which would compete for the same places of caches.
inline size_t row_bytes(size_t columns, int code_bytes) { return columns * code_bytes + 64; }

}  // namespace pplx
