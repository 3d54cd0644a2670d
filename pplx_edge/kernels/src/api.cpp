// The C interface: arguments checked, buffers kept for the next call, floating-point modes set as the kernels need them.
#include <cstdlib>
#include <cstring>

#include <pthread.h>

#include "dispatch.h"
#include "encoder.h"
#include "float_modes.h"
#include "memory.h"

using namespace pplx;

struct pplx_model {
  ModelFile file;
  const Kernels* kernels = nullptr;
  pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  Buffers* spare = nullptr;  // of the last call
  double seconds[kPhases] = {};  // of all calls
};

namespace {

constexpr uint64_t kMostSpareBytes = 64 << 20;  // larger buffers are freed after a call

int check_rows(const ModelFile& m, const Rows& rows, const ErrorText& error) {
  if (rows.n_rows < 0 || !rows.starts || rows.starts[0] != 0) return error.fail(PPLX_ERROR_ARGUMENT, "starts must begin with 0");
  for (int64_t r = 0; r < rows.n_rows; r++) {
    const int64_t n = rows.starts[r + 1] - rows.starts[r];
    if (n < 0 || n > m.max_tokens)
      return error.fail(PPLX_ERROR_ARGUMENT, "row %lld has %lld tokens; this model reads up to %d", static_cast<long long>(r),
                        static_cast<long long>(n), m.max_tokens);
  }
  if (rows.n_tokens() && !rows.ids) return error.fail(PPLX_ERROR_ARGUMENT, "no ids");
  for (int64_t i = 0; i < rows.n_tokens(); i++)
    if (rows.ids[i] < 0 || rows.ids[i] >= m.vocab)
      return error.fail(PPLX_ERROR_ARGUMENT, "id %d is not in the vocabulary of %d tokens", rows.ids[i], m.vocab);
  return PPLX_OK;
}

// One call: buffers and threads for its rows.
class Call {
 public:
  Call(pplx_model& model, const Rows& rows, int threads) : model_(model), team_(threads > 0 ? threads : default_threads()) {
    pthread_mutex_lock(&model.lock);
    buffers_ = model.spare;
    model.spare = nullptr;
    pthread_mutex_unlock(&model.lock);
    if (!buffers_) buffers_ = make<Buffers>();
    fits_ = buffers_ && buffers_->fit(model.file, *model.kernels, rows.n_rows, rows.n_tokens(), team_.threads());
  }
  ~Call() {
    pthread_mutex_lock(&model_.lock);
    for (int i = 0; i < kPhases; i++) model_.seconds[i] += clock_.seconds[i];
    if (buffers_ && buffers_->bytes() <= kMostSpareBytes) {
      Buffers* other = model_.spare;
      model_.spare = buffers_;
      buffers_ = other;
    }
    pthread_mutex_unlock(&model_.lock);
    destroy(buffers_);
  }

  bool fits() const { return fits_; }
  Buffers& buffers() { return *buffers_; }
  Team& team() { return team_; }
  PhaseClock& clock() { return clock_; }

 private:
  pplx_model& model_;
  Team team_;
  Buffers* buffers_;
  bool fits_;
  PhaseClock clock_;
  FloatModes modes_;
};

// Copy rows of padded width to rows of the true width, or back with zeros as padding.
void narrow(const float* from, int64_t rows, const ModelFile& m, float* to) {
  for (int64_t i = 0; i < rows; i++) std::memcpy(to + i * m.width, from + i * m.hidden, sizeof(float) * m.width);
}
void widen(const float* from, int64_t rows, const ModelFile& m, float* to) {
  for (int64_t i = 0; i < rows; i++) {
    std::memcpy(to + i * m.hidden, from + i * m.width, sizeof(float) * m.width);
    std::memset(to + i * m.hidden + m.width, 0, sizeof(float) * (m.hidden - m.width));
  }
}

// Run layers [first, last); the stream comes from `states` unless first = 0, and with last = n_layers + 1 the final norm is applied
// in place. The result is in buffers().residual.
void run(const ModelFile& m, const Kernels& k, Call& call, const Rows& rows, int first, int last, const float* states) {
  Buffers& b = call.buffers();
  Encoder encoder(m, k, b, call.team(), rows, call.clock());
  if (first == 0) encoder.embed();
  else widen(states, rows.n_tokens(), m, b.residual);
  for (int i = first; i < last && i < m.n_layers; i++) encoder.layer(i);
  if (last > m.n_layers) {
    encoder.final_norm(b.residual);
    encoder.mark_bad(b.residual);
  }
}

int no_memory(const pplx_model* model, const Rows& rows, const ErrorText& error) {
  return error.fail(PPLX_ERROR_MEMORY, "no memory for the buffers of %lld tokens (%llu MB)", static_cast<long long>(rows.n_tokens()),
                    static_cast<unsigned long long>(pplx_buffer_bytes(model, rows.n_rows, rows.n_tokens(), 0) >> 20));
}

}  // namespace

extern "C" {

int32_t pplx_abi_version(void) { return PPLX_ABI_VERSION; }

const char* pplx_instruction_sets(void) { return available_names(); }

const char* pplx_build_info(void) {
  static char text[256];  // always the same text
#if defined(__clang__)
  const char* compiler = "clang " __clang_version__;
#else
  const char* compiler = "gcc " __VERSION__;
#endif
  snprintf(text, sizeof text, "%s, instruction sets %s", compiler, compiled_names());
  return text;
}

int pplx_open(const char* path, const void* image, uint64_t image_bytes, const char* isa, pplx_model** out, char* error,
              uint64_t error_bytes) {
  const ErrorText text{error, error_bytes};
  if (!out) return text.fail(PPLX_ERROR_ARGUMENT, "no place for the model");
  *out = nullptr;
  pplx_model* model = make<pplx_model>();
  if (!model) return text.fail(PPLX_ERROR_MEMORY, "no memory for a model");
  int result = PPLX_OK;
  model->kernels = kernels_for(isa);
  if (!model->kernels)
    result = text.fail(PPLX_ERROR_UNSUPPORTED, "instruction set %s is not available: choose one of %s", isa, available_names());
  else
    result = path ? model->file.open(path, text) : model->file.adopt(image, image_bytes, text);
  if (result == PPLX_OK && model->kernels->any_weights && !model->file.weights_fit_pairs(*model->kernels))
    model->kernels = model->kernels->any_weights;
  if (result != PPLX_OK) destroy(model);
  else *out = model;
  return result;
}

int pplx_run_layers(pplx_model* model, const int32_t* ids, const int64_t* starts, int64_t n_rows, int32_t first, int32_t last,
                    int32_t threads, float* states, char* error, uint64_t error_bytes) {
  const ErrorText text{error, error_bytes};
  const ModelFile& m = model->file;
  const Rows rows{ids, starts, n_rows};
  if (const int result = check_rows(m, rows, text)) return result;
  if (first < 0 || last < first || last > m.n_layers + 1)
    return text.fail(PPLX_ERROR_ARGUMENT, "layers [%d, %d) of %d do not exist", first, last, m.n_layers);
  if (!rows.n_tokens()) return PPLX_OK;
  Call call(*model, rows, threads);
  if (!call.fits()) return no_memory(model, rows, text);
  run(m, *model->kernels, call, rows, first, last, states);
  narrow(call.buffers().residual, rows.n_tokens(), m, states);
  return PPLX_OK;
}

int pplx_states(pplx_model* model, const int32_t* ids, const int64_t* starts, int64_t n_rows, int32_t threads, float* states,
                char* error, uint64_t error_bytes) {
  return pplx_run_layers(model, ids, starts, n_rows, 0, model->file.n_layers + 1, threads, states, error, error_bytes);
}

int pplx_span_means(pplx_model* model, const int32_t* ids, const int64_t* starts, int64_t n_rows, const int64_t* spans, int64_t n_spans,
                    int32_t threads, float* means, char* error, uint64_t error_bytes) {
  const ErrorText text{error, error_bytes};
  const ModelFile& m = model->file;
  const Rows rows{ids, starts, n_rows};
  if (const int result = check_rows(m, rows, text)) return result;
  for (int64_t i = 0; i < n_spans; i++)
    if (spans[2 * i] < 0 || spans[2 * i + 1] > rows.n_tokens())
      return text.fail(PPLX_ERROR_ARGUMENT, "span %lld is not within %lld tokens", static_cast<long long>(i),
                       static_cast<long long>(rows.n_tokens()));
  std::memset(means, 0, sizeof(float) * m.width * n_spans);
  if (!rows.n_tokens()) return PPLX_OK;
  Call call(*model, rows, threads);
  if (!call.fits()) return no_memory(model, rows, text);
  run(m, *model->kernels, call, rows, 0, m.n_layers + 1, nullptr);
  const Buffers& b = call.buffers();
  call.team().each(n_spans, [&](int64_t i, int thread) {
    const int64_t from = spans[2 * i], n = spans[2 * i + 1] - from;
    float* mean = reinterpret_cast<float*>(b.scratch[thread].sums);
    constexpr int kStep = 1024;  // columns at once, which fit into the scratch of every model
    for (int c = 0; c < m.hidden && n > 0; c += kStep) {
      const int wide = m.hidden - c < kStep ? m.hidden - c : kStep, kept = m.width - c < wide ? m.width - c : wide;
      model->kernels->mean(b.residual + from * m.hidden + c, static_cast<int>(n), m.hidden, wide, mean);
      if (kept > 0) std::memcpy(means + i * m.width + c, mean, sizeof(float) * kept);
    }
  });
  call.clock().end(kMeans);
  return PPLX_OK;
}

const char* pplx_isa(const pplx_model* model) { return model->kernels->name; }

uint64_t pplx_buffer_bytes(const pplx_model* model, int64_t n_rows, int64_t n_tokens, int32_t threads) {
  return Buffers::bytes_for(model->file, *model->kernels, n_rows, n_tokens, threads > 0 ? threads : default_threads());
}

const char* pplx_phase_names(void) {
  return "embedding,norms,q k v,keys and values,attention,quantize,o,gate and up,down,means";
}

void pplx_phase_seconds(pplx_model* model, double* seconds) {
  pthread_mutex_lock(&model->lock);
  std::memcpy(seconds, model->seconds, sizeof model->seconds);
  pthread_mutex_unlock(&model->lock);
}

int32_t pplx_default_threads(void) { return default_threads(); }

void pplx_close(pplx_model* model) {
  if (!model) return;
  destroy(model->spare);
  destroy(model);
}

}  // extern "C"
