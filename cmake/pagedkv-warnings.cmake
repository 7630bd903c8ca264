# Strict warnings and sanitizers for the project's own targets; never for a parent's or a consumer's.
#
# pagedkv_target_defaults(<target> [OPTIMISED]): programs that compute much are OPTIMISED as libraries are; all others are
# compiled with PAGEDKV_PROGRAM_OPTIONS, which halves the time of a sanitizer's build.
function(pagedkv_target_defaults target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF CXX_VISIBILITY_PRESET hidden C_VISIBILITY_PRESET hidden
                                             VISIBILITY_INLINES_HIDDEN ON)
  target_compile_options(
    ${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wnon-virtual-dtor
                      -Wold-style-cast -Wcast-qual -Woverloaded-virtual -Wundef $<$<BOOL:${PROJECT_IS_TOP_LEVEL}>:-Werror>)
  # The stable algorithms of libstdc++ 12 use a function that it deprecates itself; g++ still reports uses of our own.
  target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:Clang>:-Wno-deprecated-declarations>)
  get_target_property(type ${target} TYPE)
  if(type STREQUAL "EXECUTABLE" AND NOT "OPTIMISED" IN_LIST ARGN)
    target_compile_options(${target} PRIVATE ${PAGEDKV_PROGRAM_OPTIONS})
  endif()
  if(PAGEDKV_FUZZ AND NOT type STREQUAL "EXECUTABLE")  # It reports its edges; only the fuzz targets link libFuzzer.
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
  if(PAGEDKV_COVERAGE)
    target_compile_options(${target} PUBLIC -fprofile-instr-generate -fcoverage-mapping)
    target_link_options(${target} PUBLIC -fprofile-instr-generate)
  endif()
  if(PAGEDKV_SANITIZE)
    target_compile_options(${target} PUBLIC -fsanitize=${PAGEDKV_SANITIZE} -fno-sanitize-recover=all
                                             -fno-omit-frame-pointer)
    target_link_options(${target} PUBLIC -fsanitize=${PAGEDKV_SANITIZE})
  endif()
endfunction()
