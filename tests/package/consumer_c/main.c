/* A program in C alone that links the static library. */
#include <stdio.h>

#include "pagedkv/c/pagedkv.h"

int main(void) {
  pagedkv_pool_options options = {0};
  pagedkv_pool pool = 0;
  options.struct_size = sizeof options;
  options.page_bytes = 4096;
  options.capacity_pages = 4;
  if (pagedkv_pool_create(&options, &pool) != PAGEDKV_OK) return 1;
  printf("pagedkv %s\n", pagedkv_version());
  return pagedkv_pool_close(pool) == PAGEDKV_OK ? 0 : 1;
}
