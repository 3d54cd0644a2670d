// Tests of the kernels as a program, so that they also run under emulators and sanitizers:
//
//   kernel_tests products ROUNDS                       products of random shapes, between guard pages, against plain sums
//   kernel_tests states MODEL ROWS OUT ISA THREADS     the final states of packed rows as raw float32
//   kernel_tests fuzz MODEL ROUNDS                     damaged copies of a model file, opened and, if accepted, run
//   kernel_tests team ROUNDS                           every helper takes part in every call
//   kernel_tests isas                                  the instruction sets of this machine
//
// ROWS is a file of int64: the number of rows, their starts (one more), and the ids.
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../src/dispatch.h"
#include "../src/pool.h"
#include "pplx_kernels.h"

using namespace pplx;

namespace {

// A small generator, so that every platform tests the same numbers.
struct Random {
  uint64_t state;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
  int below(int n) { return static_cast<int>(next() % static_cast<uint32_t>(n)); }
  int code() { return below(255) - 127; }
};

// Memory that ends where an inaccessible page begins, and begins after another.
class Guarded {
 public:
  explicit Guarded(size_t bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), pages = (bytes + page - 1) / page;
    total_ = (pages + 2) * page;
    base_ = static_cast<uint8_t*>(mmap(nullptr, total_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page, pages * page, PROT_READ | PROT_WRITE)) std::abort();
    data_ = base_ + (pages + 1) * page - bytes;
  }
  ~Guarded() { munmap(base_, total_); }
  template <class T> T* as() { return reinterpret_cast<T*>(data_); }

 private:
  uint8_t *base_, *data_;
  size_t total_;
};

struct GuardedScratch {
  Guarded sums{size_t{4} * (2 * kBlockRows + kSpareRows) * kMaxHead}, floats{size_t{4} * kBlockRows * kMaxHead}, codes{64}, panel{size_t{32} * 4096},
      unpacked{kUnpackedBytes};
  Scratch scratch{sums.as<int32_t>(), floats.as<float>(), codes.as<uint8_t>(), panel.as<int16_t>(), unpacked.as<int8_t>()};
};

// Fills a panel of 4 bits and the weights [16][depth] that it stands for. Those of pairs never add up to more than 128.
void random_packed_panel(Random& random, bool extreme, bool pairs, int depth, uint8_t* panel, int* weights) {
  for (int i = 0; i < depth / kGroup * kLanes; i++) panel[i] = static_cast<uint8_t>(random.below(256) & (pairs ? 0xf4 : 0xff));
  uint8_t* codes = panel + depth / kGroup * kLanes;
  for (int i = 0; i < depth * kLanes / 2; i++) codes[i] = static_cast<uint8_t>(extreme ? (i % 4 < 2 ? 0x0f : 0xf0) : random.below(256));
  for (int n = 0; n < kLanes; n++)
    for (int c = 0; c < depth; c++) {
      const int group = panel[c / kGroup * kLanes + n], code = codes[(c / 8 * kLanes + n) * 4 + c % 4] >> (c % 8 < 4 ? 0 : 4) & 15;
      weights[static_cast<size_t>(n) * depth + c] = static_cast<int8_t>((code - (group >> 4)) * (group & 15));
    }
}

enum class Product { kInt8, kInt4, kAttention };

// Returns the number of wrong sums.
int test_product(const Kernels& k, Product product, Random& random, GuardedScratch& scratch) {
  const bool attention = product == Product::kAttention;
  const int code_bytes = attention ? k.attention_bytes : k.code_bytes, bits = product == Product::kInt4 ? 4 : 8;
  const bool pairs = k.any_weights && !attention;
  const int rows = 1 + random.below(2 * kBlockRows), columns = 64 * (1 + random.below(4)), depth = 64 * (1 + random.below(random.below(8) ? 8 : 64));
  const size_t row = static_cast<size_t>(depth) * code_bytes + (random.below(2) ? 64 : 0);
  Weights w{nullptr, nullptr, nullptr, columns, depth, bits};
  Guarded a((rows + kSpareRows) * row), panels(columns / kLanes * w.panel_bytes()), sums(4 * columns), scales(4 * columns);
  Guarded out(size_t{4} * columns * (rows + kSpareRows));
  std::vector<int32_t> codes(static_cast<size_t>(rows) * depth);
  std::vector<int> weights(static_cast<size_t>(columns) * depth);
  const int extreme_rows = random.below(2), extreme_columns = random.below(2);
  for (int i = 0; i < rows; i++) {
    for (int c = 0; c < depth; c++) codes[static_cast<size_t>(i) * depth + c] = extreme_rows ? (i % 2 ? 127 : -127) : random.code();
    for (int c = 0; c < depth; c += kLanes) (attention ? k.encode_attention : k.encode)(&codes[static_cast<size_t>(i) * depth + c], a.as<uint8_t>() + i * row + c * code_bytes);
  }
  for (int p = 0; p < columns / kLanes && bits == 4; p++)
    random_packed_panel(random, extreme_columns, pairs, depth, panels.as<uint8_t>() + p * w.panel_bytes(), &weights[static_cast<size_t>(p) * kLanes * depth]);
  for (int n = 0; n < columns && bits == 8; n++)
    for (int c = 0; c < depth; c++) {
      int w = extreme_columns ? (n % 3 ? 127 : -127) : random.code();
      if (pairs && c % 2) {  // the most that the neighbor leaves
        const int other = weights[static_cast<size_t>(n) * depth + c - 1];
        w = w < -128 - other ? -128 - other : w > 128 - other ? 128 - other : w;
      }
      weights[static_cast<size_t>(n) * depth + c] = w;
      panels.as<int8_t>()[((n / 16 * static_cast<size_t>(depth / 4) + c / 4) * 16 + n % 16) * 4 + c % 4] = static_cast<int8_t>(w);
    }
  for (int n = 0; n < columns; n++) {
    int total = 0;
    for (int c = 0; c < depth; c++) total += weights[static_cast<size_t>(n) * depth + c];
    sums.as<int32_t>()[n] = total;
  }
  w.panels = panels.as<int8_t>(), w.scales = scales.as<float>(), w.sums = sums.as<int32_t>();
  (attention ? k.attention_product : k.product)({a.as<uint8_t>(), nullptr, row}, rows, w, out.as<int32_t>(), columns, scratch.scratch);
  int wrong = 0;
  for (int i = 0; i < rows; i++)
    for (int n = 0; n < columns; n++) {
      int32_t sum = 0;
      for (int c = 0; c < depth; c++) sum += codes[static_cast<size_t>(i) * depth + c] * weights[static_cast<size_t>(n) * depth + c];
      wrong += sum != out.as<int32_t>()[static_cast<size_t>(i) * columns + n];
    }
  if (wrong) printf("%s: rows %d, columns %d, depth %d, %d bits: %d wrong sums\n", k.name, rows, columns, depth, bits, wrong);
  return wrong;
}

int test_products(const Kernels& k, int rounds) {
  GuardedScratch scratch;
  Random random{42};
  int wrong = 0;
  for (int i = 0; i < rounds; i++) wrong += test_product(k, static_cast<Product>(i % 3), random, scratch) != 0;
  printf("%s%s: %d products, %d wrong\n", k.name, k.any_weights ? " in pairs" : "", rounds, wrong);
  return wrong;
}

int test_all_products(int rounds) {
  int wrong = 0;
  const std::string names = available_names();
  for (size_t from = 0; from < names.size();) {
    const size_t to = names.find(',', from) == std::string::npos ? names.size() : names.find(',', from);
    const Kernels& k = *kernels_for(names.substr(from, to - from).c_str());
    wrong += test_products(k, rounds);
    if (k.any_weights) wrong += test_products(*k.any_weights, rounds);
    from = to + 1;
  }
  return wrong != 0;
}

std::vector<uint8_t> read_file(const char* path) {
  std::vector<uint8_t> bytes;
  FILE* file = fopen(path, "rb");
  if (!file) std::abort();
  fseek(file, 0, SEEK_END);
  bytes.resize(static_cast<size_t>(ftell(file)));
  rewind(file);
  if (fread(bytes.data(), 1, bytes.size(), file) != bytes.size()) std::abort();
  fclose(file);
  return bytes;
}

int write_states(const char* model_path, const char* rows_path, const char* out_path, const char* isa, int threads) {
  const std::vector<uint8_t> bytes = read_file(rows_path);
  std::vector<int64_t> numbers(bytes.size() / 8);
  std::memcpy(numbers.data(), bytes.data(), bytes.size());
  const int64_t n_rows = numbers[0], n_tokens = numbers[n_rows + 1];
  const std::vector<int32_t> ids(numbers.begin() + n_rows + 2, numbers.end());
  pplx_file_header header;
  const std::vector<uint8_t> start = read_file(model_path);
  std::memcpy(&header, start.data(), sizeof header);
  std::vector<float> states(static_cast<size_t>(n_tokens) * header.hidden);
  char error[256] = "";
  pplx_model* model;
  int result = pplx_open(model_path, nullptr, 0, isa, &model, error, sizeof error);
  if (!result) result = pplx_states(model, ids.data(), numbers.data() + 1, n_rows, threads, states.data(), error, sizeof error);
  if (result) {
    printf("%s\n", error);
    return 1;
  }
  FILE* out = fopen(out_path, "wb");
  if (!out || fwrite(states.data(), 4, states.size(), out) != states.size() || fclose(out)) return 1;
  pplx_close(model);
  return 0;
}

// Open copies with random damage in header, directory or length. Accepted ones must run: damage may have hit unused bits only.
int fuzz(const char* path, int rounds) {
  const std::vector<uint8_t> whole = read_file(path);
  pplx_file_header header;
  std::memcpy(&header, whole.data(), sizeof header);
  const size_t directory_end = 128 + size_t{48} * header.n_tensors;
  Random random{7};
  int refused = 0;
  for (int round = 0; round < rounds; round++) {
    size_t size = whole.size();
    if (random.below(4) == 0) size = static_cast<size_t>(random.next()) % (size + 1);
    Guarded copy((size + 63) / 64 * 64);
    uint8_t* data = copy.as<uint8_t>();
    std::memcpy(data, whole.data(), size);
    for (int i = random.below(3); i >= 0; i--) {
      const size_t place = random.below(2) ? static_cast<size_t>(random.below(128)) : static_cast<size_t>(random.next()) % directory_end;
      if (place + 8 > size) continue;
      const uint64_t values[] = {0, 1, ~uint64_t{0}, uint64_t{1} << random.below(64), random.next(), uint64_t{1} << 63};
      std::memcpy(data + place, &values[random.below(6)], random.below(2) ? 4 : 1 + random.below(8));
    }
    char error[256] = "";
    pplx_model* model;
    if (pplx_open(nullptr, data, size, "", &model, error, sizeof error)) {
      if (!*error || std::strchr(error, '\n')) return printf("round %d: no line of text\n", round), 1;
      refused++;
      continue;
    }
    const int32_t ids[] = {0, 1, 2, 1};
    const int64_t starts[] = {0, 3, 4};
    std::vector<float> states(4 * static_cast<size_t>(header.hidden) + 64);
    pplx_file_header now;
    std::memcpy(&now, data, sizeof now);
    if (now.hidden == header.hidden) pplx_states(model, ids, starts, 2, 1, states.data(), error, sizeof error);
    pplx_close(model);
  }
  printf("%d damaged files, %d refused\n", rounds, refused);
  return 0;
}

// Tasks that wait for each other: a helper that misses a call makes this program wait until the alarm ends it.
int meet(int rounds) {
  alarm(300);
  Team team(2);
  if (team.threads() != 2) return printf("%d threads\n", team.threads()), 1;
  for (int round = 0; round < rounds; round++) {
    std::atomic<int> arrived{0};
    team.each(2, [&](int64_t, int) {
      for (arrived++; arrived < 2;) sched_yield();
    });
  }
  return printf("%d rounds\n", rounds) < 0;
}

}  // namespace

int main(int count, char** words) {
  const std::string command = count > 1 ? words[1] : "";
  if (command == "products" && count == 3) return test_all_products(atoi(words[2]));
  if (command == "states" && count == 7) return write_states(words[2], words[3], words[4], words[5], atoi(words[6]));
  if (command == "fuzz" && count == 4) return fuzz(words[2], atoi(words[3]));
  if (command == "team" && count == 3) return meet(atoi(words[2]));
  if (command == "isas" && count == 2) return printf("%s\n", available_names()) < 0;
  fprintf(stderr, "see the comment at the top of kernel_tests.cpp\n");
  return 2;
}
