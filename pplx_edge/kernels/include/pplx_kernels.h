/* The C interface of the CPU kernels, and the layout of the model file that they map.
 *
 * A model file is little-endian: a header of 128 bytes, a directory of tensors, then the tensors, each at a multiple of
 * 64 bytes. Every tensor's place in the directory, type and shape follow from the sizes in the header; a file that says
 * anything else is refused. Sizes are padded so that kernels need no special case at an edge:
 *
 *   pad(n)  n rounded up to a multiple of 64
 *   hidden, intermediate   padded to pad(n); padding comes last and is zero
 *   a head                 2 * half values, half = head_dim / 2 rounded up to a multiple of 32: the first head_dim / 2
 *                          components, zeros, the other head_dim / 2 components, zeros
 *   heads                  head_size = 2 * half; query width = n_heads * head_size; key width = n_kv_heads * head_size
 *
 * A product's weights are int8 codes in -127..127 in the layout V4x16, [N/16][K/4][16 columns][4 k], with one float32
 * scale and one int32 sum of codes for each of the N columns (output channels).
 *
 * A file that begins with PPLX_FILE_MAGIC_4 stores these int8 codes in 4.25 bits. A group is 32 neighboring k of a column,
 * with a multiplier m in 0..15 and a zero point z in 0..15; a weight has a 4-bit code q, and its int8 code is the low byte
 * of (q - z) * m. Everything else, sums of codes included, is as in a file of int8 codes. A panel is
 *
 *   [K/32][16 columns]         bytes z << 4 | m
 *   [K/8][16 columns][4 k]     bytes; the low half is q of k, the high half q of k + 4, where k is 8i, 8i + 1, 8i + 2, 8i + 3
 *
 * Order of the directory (kinds below): TABLE, TABLE_SCALES, then for each layer INPUT_NORM, QKV, QKV_SCALES, QKV_SUMS,
 * Q_NORM, K_NORM, O, O_SCALES, O_SUMS, POST_NORM, GATE_UP, GATE_UP_SCALES, GATE_UP_SUMS, DOWN, DOWN_SCALES, DOWN_SUMS;
 * at the end FINAL_NORM, COS, SIN.
 */
#ifndef PPLX_KERNELS_H
#define PPLX_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

#define PPLX_ABI_VERSION 2
#define PPLX_FILE_MAGIC "PPLXINT8"
#define PPLX_FILE_MAGIC_4 "PPLXINT4"
#define PPLX_FILE_VERSION 1
#define PPLX_BYTE_ORDER 0x01020304u
#define PPLX_ALIGNMENT 64

/* Kinds of tensors, with their shapes [rows, columns] and types. V4x16 is of type PPLX_INT8_V4X16 or PPLX_INT4_V4X16. */
enum pplx_kind {
  PPLX_TABLE = 1,           /* int8 [vocab, pad(hidden)], row by row */
  PPLX_TABLE_SCALES = 2,    /* float32 [1, vocab] */
  PPLX_INPUT_NORM = 3,      /* float32 [1, pad(hidden)] */
  PPLX_QKV = 4,             /* V4x16, N = query width + 2 * key width (heads in natural order), K = pad(hidden) */
  PPLX_QKV_SCALES = 5,      /* float32 [1, N] */
  PPLX_QKV_SUMS = 6,        /* int32 [1, N] */
  PPLX_Q_NORM = 7,          /* float32 [1, head_size], padded like a head */
  PPLX_K_NORM = 8,          /* float32 [1, head_size] */
  PPLX_O = 9,               /* V4x16, N = pad(hidden), K = query width */
  PPLX_O_SCALES = 10,
  PPLX_O_SUMS = 11,
  PPLX_POST_NORM = 12,      /* float32 [1, pad(hidden)] */
  PPLX_GATE_UP = 13,        /* V4x16, N = 2 * pad(intermediate), K = pad(hidden): panel 2i holds the columns
                               [16i, 16i + 16) of gate, panel 2i + 1 those of up; scales and sums in the same order */
  PPLX_GATE_UP_SCALES = 14,
  PPLX_GATE_UP_SUMS = 15,
  PPLX_DOWN = 16,           /* V4x16, N = pad(hidden), K = pad(intermediate) */
  PPLX_DOWN_SCALES = 17,
  PPLX_DOWN_SUMS = 18,
  PPLX_FINAL_NORM = 19,     /* float32 [1, pad(hidden)] */
  PPLX_COS = 20,            /* float32 [max_tokens, half] */
  PPLX_SIN = 21             /* float32 [max_tokens, half] */
};

enum pplx_type { PPLX_INT8_ROWS = 1, PPLX_INT8_V4X16 = 2, PPLX_FLOAT32 = 3, PPLX_INT32 = 4, PPLX_INT4_V4X16 = 5 };

typedef struct {
  char magic[8];
  uint32_t version, byte_order, header_bytes, n_tensors; /* header_bytes = 128 */
  uint64_t file_bytes, directory_offset;                 /* directory_offset = 128 */
  uint32_t n_layers, hidden, n_heads, n_kv_heads, head_dim, intermediate, vocab, max_tokens;
  float head_eps, stream_eps; /* eps of the norms of heads, and of the norms of the residual stream */
  uint32_t reserved[12];      /* zero */
} pplx_file_header;

typedef struct {
  uint32_t kind, layer, type, reserved; /* layer = 0 for tensors outside the layers */
  uint64_t rows, columns;               /* N, K for V4x16 */
  uint64_t offset, bytes;               /* from the beginning of the file; ascending, without overlap */
} pplx_file_tensor;                     /* 48 bytes */

/* Results of all functions that return int. Functions that fail write one line of text to `error`. */
enum pplx_result {
  PPLX_OK = 0,
  PPLX_ERROR_ARGUMENT = 1,    /* an id, position or span is out of range */
  PPLX_ERROR_FILE = 2,        /* the file cannot be opened or mapped */
  PPLX_ERROR_FORMAT = 3,      /* the contents are not a model file of this version */
  PPLX_ERROR_UNSUPPORTED = 4, /* this processor lacks the requested instruction set, or the name is unknown */
  PPLX_ERROR_MEMORY = 5       /* memory could not be allocated */
};

typedef struct pplx_model pplx_model;

/* The version of this interface; the caller must compare it with PPLX_ABI_VERSION. */
int32_t pplx_abi_version(void);

/* The instruction sets that this processor can run, best first, separated by commas, for example "avx512,avx2,scalar". */
const char *pplx_instruction_sets(void);

/* Open a model: from `path`, which is mapped, or if `path` is null from `image`, which must be aligned to 64 bytes and stay
 * valid until the model is closed. `isa` is the name of an instruction set; null or "" takes the best one. */
int pplx_open(const char *path, const void *image, uint64_t image_bytes, const char *isa, pplx_model **model,
              char *error, uint64_t error_bytes);

/* Compute the final states of packed rows: float32 [n_tokens, hidden]. Row r is ids[starts[r]] … ids[starts[r + 1] - 1];
 * starts has n_rows + 1 entries from 0 to n_tokens. `threads` is the number of threads, 0 for one per core. Calls may come
 * from several threads; calls with more than one thread take turns at the pool that all models of a process share. */
int pplx_states(pplx_model *model, const int32_t *ids, const int64_t *starts, int64_t n_rows, int32_t threads,
                float *states, char *error, uint64_t error_bytes);

/* Compute the mean state of each span of packed tokens [spans[2i], spans[2i + 1]): float32 [n_spans, hidden]. An empty span
 * gives zeros. */
int pplx_span_means(pplx_model *model, const int32_t *ids, const int64_t *starts, int64_t n_rows, const int64_t *spans,
                    int64_t n_spans, int32_t threads, float *means, char *error, uint64_t error_bytes);

/* Run some layers, for comparing them with a reference. If first = 0, `states` receives the embeddings of the ids; otherwise it
 * holds the residual stream before layer `first`. Runs the layers [first, last) and returns the residual stream in `states`,
 * float32 [n_tokens, hidden]; last = n_layers + 1 also applies the final norm. Chained calls give the bits of pplx_states. */
int pplx_run_layers(pplx_model *model, const int32_t *ids, const int64_t *starts, int64_t n_rows, int32_t first, int32_t last,
                    int32_t threads, float *states, char *error, uint64_t error_bytes);

/* The compiler, and the instruction sets that were compiled in, in one line. */
const char *pplx_build_info(void);

/* The name of the instruction set of a model. */
const char *pplx_isa(const pplx_model *model);

/* The bytes of buffers that a call with so many rows and tokens needs, besides the model. */
uint64_t pplx_buffer_bytes(const pplx_model *model, int64_t n_rows, int64_t n_tokens, int32_t threads);

/* The names of the phases of a call, separated by commas, and the seconds that all calls of a model spent in each so far. A phase
 * ends when all threads have finished it. Products include what is done with their results: norms and rotation of heads, SiLU. */
const char *pplx_phase_names(void);
void pplx_phase_seconds(pplx_model *model, double *seconds);

/* The number of threads that a call with `threads` = 0 uses. */
int32_t pplx_default_threads(void);

/* Close a model that no call uses. Null is allowed. */
void pplx_close(pplx_model *model);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif
#endif
