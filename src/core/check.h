// Assert levels. PAGEDKV_ASSERT: a programming error, checked in debug and hardened builds, where it traps.
// Values that come from a request are never asserted: they are checked and answered with an Error.
#pragma once

#if defined(PAGEDKV_HARDENED) || !defined(NDEBUG)
#define PAGEDKV_ASSERT(condition)  \
  do {                             \
    if (!(condition)) [[unlikely]] \
      __builtin_trap();            \
  } while (false)
#else
#define PAGEDKV_ASSERT(condition) \
  do {                            \
  } while (false)
#endif
