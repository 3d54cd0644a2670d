#include "model.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <cstdlib>
#include <initializer_list>

namespace pplx {
namespace {

static_assert(sizeof(pplx_file_header) == 128 && sizeof(pplx_file_tensor) == 48);

constexpr uint32_t kMaxLayers = 1024, kMaxSize = 1 << 24;

// Reads the tensors of the directory in their order, each checked against what the sizes demand.
class Directory {
 public:
  Directory(const uint8_t* data, const pplx_file_header& header, int bits, const ErrorText& error)
      : data_(data), header_(header), bits_(bits), error_(error), end_(128 + uint64_t{48} * header.n_tensors) {}

  template <class T> const T* next(uint32_t kind, uint32_t layer, uint32_t type, uint64_t rows, uint64_t columns) {
    return reinterpret_cast<const T*>(next(kind, layer, type, rows, columns, rows * columns * sizeof(T)));  // at most 2^26 each: exact
  }

  const uint8_t* next(uint32_t kind, uint32_t layer, uint32_t type, uint64_t rows, uint64_t columns, uint64_t bytes) {
    if (failed) return nullptr;
    pplx_file_tensor t;
    std::memcpy(&t, data_ + 128 + uint64_t{48} * index_, 48);
    if (t.kind != kind || t.layer != layer || t.type != type || t.reserved || t.rows != rows || t.columns != columns || t.bytes != bytes)
      return refuse("is not the tensor of kind %u, layer %u that the sizes of the model demand", kind, layer);
    if (t.offset % PPLX_ALIGNMENT || t.offset < end_ || t.offset > header_.file_bytes || bytes > header_.file_bytes - t.offset)
      return refuse("is not inside the file, aligned and after the tensor before it (offset %llu, %llu bytes)",
                    static_cast<unsigned long long>(t.offset), static_cast<unsigned long long>(bytes));
    end_ = t.offset + bytes;
    index_++;
    return data_ + t.offset;
  }

  const float* floats(uint32_t kind, uint32_t layer, uint64_t rows, uint64_t columns) {
    return next<float>(kind, layer, PPLX_FLOAT32, rows, columns);
  }

  Weights weights(uint32_t kind, uint32_t layer, uint64_t columns, uint64_t depth) {
    Weights w{};
    w.columns = static_cast<int>(columns);
    w.depth = static_cast<int>(depth);
    w.bits = bits_;
    const uint32_t type = bits_ == 8 ? PPLX_INT8_V4X16 : PPLX_INT4_V4X16;
    w.panels = reinterpret_cast<const int8_t*>(next(kind, layer, type, columns, depth, columns / kLanes * w.panel_bytes()));
    w.scales = floats(kind + 1, layer, 1, columns);
    w.sums = next<int32_t>(kind + 2, layer, PPLX_INT32, 1, columns);
    return w;
  }

  bool failed = false;

 private:
  template <class... A> std::nullptr_t refuse(const char* why, A... values) {
    char text[256];
    snprintf(text, sizeof text, why, values...);
    error_.fail(PPLX_ERROR_FORMAT, "tensor %u of the directory %s", index_, text);
    failed = true;
    return nullptr;
  }

  const uint8_t* data_;
  const pplx_file_header& header_;
  int bits_;
  const ErrorText& error_;
  uint64_t end_;
  uint32_t index_ = 0;
};

bool codes_fit_pairs(const int8_t* codes, size_t n) {
  int most = 0;
  for (size_t at = 0; at < n; at += 2) {  // a sum is at most 256 in magnitude; a loop without exit is vectorized
    const int sum = codes[at] + codes[at + 1], size = sum < 0 ? -sum : sum;
    most = size > most ? size : most;
  }
  return most <= 128;
}

}  // namespace

ModelFile::~ModelFile() {
  std::free(layers);
  if (mapped_) munmap(mapped_, mapped_bytes_);
}

int ModelFile::open(const char* path, const ErrorText& error) {
  const int file = ::open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return error.fail(PPLX_ERROR_FILE, "%s", strerror(errno));
  struct stat info;
  int result = PPLX_OK;
  if (fstat(file, &info) || !S_ISREG(info.st_mode)) result = error.fail(PPLX_ERROR_FILE, "not a regular file");
  else if (info.st_size < 128) result = error.fail(PPLX_ERROR_FORMAT, "too short for a header (%lld bytes)", static_cast<long long>(info.st_size));
  if (result == PPLX_OK) {
    void* data = mmap(nullptr, info.st_size, PROT_READ, MAP_SHARED, file, 0);
    if (data == MAP_FAILED) result = error.fail(PPLX_ERROR_FILE, "cannot be mapped: %s", strerror(errno));
    else mapped_ = data, mapped_bytes_ = info.st_size;
  }
  close(file);
  return result == PPLX_OK ? parse(static_cast<const uint8_t*>(mapped_), mapped_bytes_, error) : result;
}

int ModelFile::adopt(const void* image, uint64_t bytes, const ErrorText& error) {
  if (!image || reinterpret_cast<uintptr_t>(image) % PPLX_ALIGNMENT)
    return error.fail(PPLX_ERROR_ARGUMENT, "the image of a model must be aligned to %d bytes", PPLX_ALIGNMENT);
  if (bytes < 128) return error.fail(PPLX_ERROR_FORMAT, "too short for a header (%llu bytes)", static_cast<unsigned long long>(bytes));
  return parse(static_cast<const uint8_t*>(image), bytes, error);
}

bool ModelFile::weights_fit_pairs(const Kernels& kernels) const {
  alignas(64) int8_t unpacked[kPad * kLanes];
  for (int i = 0; i < n_layers; i++)
    for (const Weights* w : {&layers[i].qkv, &layers[i].o, &layers[i].gate_up, &layers[i].down})
      for (int p = 0; p < w->columns / kLanes; p++) {
        const int8_t* panel = w->panels + p * w->panel_bytes();
        if (w->bits == 8 && !codes_fit_pairs(panel, w->panel_bytes())) return false;
        for (int k = 0; w->bits == 4 && k < w->depth; k += kPad) {
          kernels.unpack(panel, w->depth, k, kPad, unpacked);
          if (!codes_fit_pairs(unpacked, sizeof unpacked)) return false;
        }
      }
  return true;
}

int ModelFile::parse(const uint8_t* data, uint64_t bytes, const ErrorText& error) {
  pplx_file_header h;
  std::memcpy(&h, data, sizeof h);
  bits = !std::memcmp(h.magic, PPLX_FILE_MAGIC, 8) ? 8 : !std::memcmp(h.magic, PPLX_FILE_MAGIC_4, 8) ? 4 : 0;
  if (!bits)
    return error.fail(PPLX_ERROR_FORMAT, "not a model of this format (no %s or %s at the beginning)", PPLX_FILE_MAGIC, PPLX_FILE_MAGIC_4);
  if (h.byte_order != PPLX_BYTE_ORDER) return error.fail(PPLX_ERROR_FORMAT, "the byte order is not this machine's");
  if (h.version != PPLX_FILE_VERSION) return error.fail(PPLX_ERROR_FORMAT, "version %u; this library reads version %u", h.version, PPLX_FILE_VERSION);
  if (h.header_bytes != 128 || h.directory_offset != 128) return error.fail(PPLX_ERROR_FORMAT, "the header or the directory is not where it must be");
  if (h.file_bytes != bytes)
    return error.fail(PPLX_ERROR_FORMAT, "%llu bytes instead of the %llu that the header gives", static_cast<unsigned long long>(bytes),
                      static_cast<unsigned long long>(h.file_bytes));
  for (uint32_t word : h.reserved)
    if (word) return error.fail(PPLX_ERROR_FORMAT, "a reserved field of the header is not zero");
  struct {
    const char* name;
    uint32_t value, most;
  } const sizes[] = {{"n_layers", h.n_layers, kMaxLayers}, {"hidden", h.hidden, kMaxColumns}, {"n_heads", h.n_heads, kMaxColumns},
                     {"n_kv_heads", h.n_kv_heads, kMaxColumns}, {"head_dim", h.head_dim, kMaxHead}, {"intermediate", h.intermediate, kMaxColumns},
                     {"vocab", h.vocab, kMaxSize}, {"max_tokens", h.max_tokens, kMaxSize}};
  for (const auto& size : sizes)
    if (!size.value || size.value > size.most) return error.fail(PPLX_ERROR_FORMAT, "%s = %u is not in 1 to %u", size.name, size.value, size.most);
  if (h.head_dim % 2) return error.fail(PPLX_ERROR_FORMAT, "head_dim = %u is odd", h.head_dim);
  if (h.n_heads % h.n_kv_heads) return error.fail(PPLX_ERROR_FORMAT, "n_kv_heads = %u does not divide n_heads = %u", h.n_kv_heads, h.n_heads);
  if (!(h.head_eps >= 0 && h.stream_eps >= 0 && std::isfinite(h.head_eps) && std::isfinite(h.stream_eps)))
    return error.fail(PPLX_ERROR_FORMAT, "an eps of the norms is not a number of at least 0");

  n_layers = h.n_layers, width = h.hidden, n_heads = h.n_heads, n_kv_heads = h.n_kv_heads, head_dim = h.head_dim;
  vocab = h.vocab, max_tokens = h.max_tokens, head_eps = h.head_eps, stream_eps = h.stream_eps;
  const uint64_t up = padded(h.hidden), in = padded(h.intermediate), half_size = padded(h.head_dim / 2, 32);
  const uint64_t queries = h.n_heads * 2 * half_size, keys = h.n_kv_heads * 2 * half_size;
  if (up > kMaxColumns || in > kMaxColumns || queries > kMaxColumns || 2 * half_size > kMaxHead)
    return error.fail(PPLX_ERROR_FORMAT, "hidden, intermediate or the heads are wider than %d", kMaxColumns);
  if (h.n_tensors != 5 + uint64_t{16} * h.n_layers || bytes < 128 + uint64_t{48} * h.n_tensors)
    return error.fail(PPLX_ERROR_FORMAT, "%u tensors do not fit %u layers or the file", h.n_tensors, h.n_layers);
  hidden = up, inner = in, half = half_size, head = 2 * half_size, query_width = queries, key_width = keys;

  layers = static_cast<Layer*>(std::calloc(n_layers, sizeof(Layer)));
  if (!layers) return error.fail(PPLX_ERROR_MEMORY, "no memory for %d layers", n_layers);
  Directory d(data, h, bits, error);
  table = d.next<int8_t>(PPLX_TABLE, 0, PPLX_INT8_ROWS, h.vocab, up);
  table_scales = d.floats(PPLX_TABLE_SCALES, 0, 1, h.vocab);
  for (uint32_t i = 0; i < h.n_layers && !d.failed; i++) {
    Layer& layer = layers[i];
    layer.input_norm = d.floats(PPLX_INPUT_NORM, i, 1, up);
    layer.qkv = d.weights(PPLX_QKV, i, queries + 2 * keys, up);
    layer.q_norm = d.floats(PPLX_Q_NORM, i, 1, head);
    layer.k_norm = d.floats(PPLX_K_NORM, i, 1, head);
    layer.o = d.weights(PPLX_O, i, up, queries);
    layer.post_norm = d.floats(PPLX_POST_NORM, i, 1, up);
    layer.gate_up = d.weights(PPLX_GATE_UP, i, 2 * in, up);
    layer.down = d.weights(PPLX_DOWN, i, up, in);
  }
  final_norm = d.floats(PPLX_FINAL_NORM, 0, 1, up);
  cos = d.floats(PPLX_COS, 0, h.max_tokens, half_size);
  sin = d.floats(PPLX_SIN, 0, h.max_tokens, half_size);
  return d.failed ? PPLX_ERROR_FORMAT : PPLX_OK;
}

}  // namespace pplx
