/* Load a build of the kernels, run a model file, and print a digest of its mean states. Equal builds print equal digests, on
 * every processor. Usage: digest LIBRARY MODEL VOCABULARY_SIZE HIDDEN_SIZE [INSTRUCTION_SET] */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "pplx_kernels.h"

enum { ROWS = 3, TOKENS = 150 };

int main(int argc, char **argv) {
  if (argc < 5) return 2;
  void *library = dlopen(argv[1], RTLD_NOW);
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  int (*open)(const char *, const void *, uint64_t, const char *, pplx_model **, char *, uint64_t) = dlsym(library, "pplx_open");
  int (*means)(pplx_model *, const int32_t *, const int64_t *, int64_t, const int64_t *, int64_t, int32_t, float *, char *,
               uint64_t) = dlsym(library, "pplx_span_means");
  const char *(*isa)(const pplx_model *) = dlsym(library, "pplx_isa");
  void (*close)(pplx_model *) = dlsym(library, "pplx_close");

  char error[512] = "";
  pplx_model *model = NULL;
  const long vocabulary = atol(argv[3]), hidden = atol(argv[4]);
  if (open(argv[2], NULL, 0, argc > 5 ? argv[5] : "", &model, error, sizeof error)) {
    fprintf(stderr, "%s\n", error);
    return 1;
  }
  int32_t ids[TOKENS];
  for (int i = 0; i < TOKENS; i++) ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)vocabulary);
  const int64_t starts[ROWS + 1] = {0, 1, 40, TOKENS}, spans[2 * ROWS] = {0, 1, 1, 40, 40, TOKENS};
  float *values = malloc(sizeof(float) * ROWS * (size_t)hidden);
  if (!values || means(model, ids, starts, ROWS, spans, ROWS, 2, values, error, sizeof error)) {
    fprintf(stderr, "%s\n", error);
    return 1;
  }
  uint64_t digest = 14695981039346656037u; /* FNV-1a */
  for (size_t i = 0; i < sizeof(float) * ROWS * (size_t)hidden; i++) digest = (digest ^ ((unsigned char *)values)[i]) * 1099511628211u;
  fprintf(stderr, "%s\n", isa(model));
  printf("%016llx\n", (unsigned long long)digest);
  close(model);
  return 0;
}
