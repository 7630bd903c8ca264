// Names of error codes.
#include "pagedkv/result.h"

namespace pagedkv {

const char* to_string(Errc code) noexcept {
  switch (code) {
    case Errc::kOk: return "ok";
    case Errc::kInvalidArgument: return "invalid_argument";
    case Errc::kOutOfPages: return "out_of_pages";
    case Errc::kOutOfMemory: return "out_of_memory";
    case Errc::kUnsupported: return "unsupported";
    case Errc::kClosed: return "closed";
    case Errc::kBusy: return "busy";
    case Errc::kOsError: return "os_error";
    case Errc::kCancelled: return "cancelled";
    case Errc::kNotFound: return "not_found";
    case Errc::kCorrupt: return "corrupt";
  }
  return "unknown";
}

}  // namespace pagedkv
