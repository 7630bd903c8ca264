// The version string.
#include "pagedkv/version.h"

#define PAGEDKV_STRINGIFY_(x) #x
#define PAGEDKV_STRINGIFY(x) PAGEDKV_STRINGIFY_(x)

namespace pagedkv {

const char* version() noexcept {
  return PAGEDKV_STRINGIFY(PAGEDKV_VERSION_MAJOR) "." PAGEDKV_STRINGIFY(PAGEDKV_VERSION_MINOR) "." PAGEDKV_STRINGIFY(
      PAGEDKV_VERSION_PATCH);
}

}  // namespace pagedkv
