// PAGEDKV_API: marks what the shared library offers; everything else stays hidden in it.
#pragma once

#if defined(__GNUC__)
#define PAGEDKV_API __attribute__((visibility("default")))
#else
#define PAGEDKV_API
#endif
