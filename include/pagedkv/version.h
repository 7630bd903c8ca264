// Version of the library, for the preprocessor and at run time.
#pragma once

#include "pagedkv/export.h"

#define PAGEDKV_VERSION_MAJOR 0
#define PAGEDKV_VERSION_MINOR 1
#define PAGEDKV_VERSION_PATCH 0

namespace pagedkv {

/// "major.minor.patch" of the library that was linked. Static storage.
PAGEDKV_API const char* version() noexcept;

}  // namespace pagedkv
