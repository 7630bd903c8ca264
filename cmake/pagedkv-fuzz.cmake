# pagedkv_fuzz(<name> SOURCES <files> LIBS <targets> SEEDS <folder>): a fuzz target, and a test that replays its cases.
#
# With PAGEDKV_FUZZ the program is libFuzzer's (clang); without, a driver of our own runs the same function over the
# files that it is given, so that every compiler and sanitizer replays what fuzzing has found. All: target `fuzzers`.
function(pagedkv_fuzz name)
  if(NOT TARGET fuzzers)
    add_custom_target(fuzzers)
  endif()
  cmake_parse_arguments(arg "" "SEEDS" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  pagedkv_target_defaults(${name} OPTIMISED)
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}/tests")
  target_link_libraries(${name} PRIVATE ${arg_LIBS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/fuzz")
  if(PAGEDKV_FUZZ)
    target_compile_options(${name} PRIVATE -fsanitize=fuzzer-no-link)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    # -runs=0: the cases and nothing else. What a case may cost is bounded.
    add_test(NAME ${name} COMMAND ${name} -runs=0 -timeout=60 -rss_limit_mb=2048 "${arg_SEEDS}")
  else()
    target_sources(${name} PRIVATE "${PROJECT_SOURCE_DIR}/tests/fuzz/replay_main.cc")
    add_test(NAME ${name} COMMAND ${name} "${arg_SEEDS}")
  endif()
  set_tests_properties(${name} PROPERTIES LABELS fuzz TIMEOUT 1800)
  add_dependencies(fuzzers ${name})
endfunction()
