// Checks of the C test program, which go on after a failure, and tensors of floats.
#ifndef PAGEDKV_TESTS_CAPI_CHECK_H_
#define PAGEDKV_TESTS_CAPI_CHECK_H_

#include <stddef.h>
#include <stdio.h>

#include "pagedkv/c/pagedkv.h"

extern int failures;

#define CHECK(condition)                                                                         \
  do {                                                                                           \
    if (!(condition)) {                                                                          \
      ++failures;                                                                                \
      fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, pagedkv_last_error()); \
    }                                                                                            \
  } while (0)
#define CHECK_STATUS(call, expected)                                                                         \
  do {                                                                                                       \
    const pagedkv_status got = (call);                                                                       \
    if (got != (expected)) {                                                                                 \
      ++failures;                                                                                            \
      fprintf(stderr, "%s:%d: %s is %s, not %s (%s)\n", __FILE__, __LINE__, #call, pagedkv_status_name(got), \
              pagedkv_status_name(expected), pagedkv_last_error());                                          \
    }                                                                                                        \
  } while (0)
#define OK(call) CHECK_STATUS(call, PAGEDKV_OK)

static inline pagedkv_const_tensor in(const float* data, size_t count) {
  return (pagedkv_const_tensor){.data = data, .num_elements = count, .dtype = PAGEDKV_F32};
}
static inline pagedkv_tensor out(float* data, size_t count) {
  return (pagedkv_tensor){.data = data, .num_elements = count, .dtype = PAGEDKV_F32};
}

// Of simple_caches_test.c.
void test_dense(void);
void test_interleaved(void);
// Of the files of their names.
void test_prefix_cache(void);
void test_plans(void);
void test_misuse(void);

#endif  // PAGEDKV_TESTS_CAPI_CHECK_H_
