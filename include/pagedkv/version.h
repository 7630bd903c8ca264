// Version of the library, for the preprocessor and at run time.
#pragma once

#define PAGEDKV_VERSION_MAJOR 0
#define PAGEDKV_VERSION_MINOR 1
#define PAGEDKV_VERSION_PATCH 0

#if defined(PAGEDKV_SHARED) && defined(__GNUC__)
#define PAGEDKV_API __attribute__((visibility("default")))
#else
#define PAGEDKV_API
#endif

namespace pagedkv {

/// "major.minor.patch" of the library that was linked. Static storage.
PAGEDKV_API const char* version() noexcept;

}  // namespace pagedkv
