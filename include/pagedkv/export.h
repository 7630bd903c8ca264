// PAGEDKV_API: marks what the shared library offers; everything else stays hidden in it.
#pragma once

#if defined(__GNUC__)
#define PAGEDKV_API __attribute__((visibility("default")))
#define PAGEDKV_LOCAL __attribute__((visibility("hidden")))  // a private part of a class that is offered
#else
#define PAGEDKV_API
#define PAGEDKV_LOCAL
#endif
