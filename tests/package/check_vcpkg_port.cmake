# Runs the vcpkg port's portfile without vcpkg: cmake -DSOURCE=... -DWORK=... -P check_vcpkg_port.cmake
#
# Functions of vcpkg are stood in for: the configuration is real, so that an option that the project does not know fails;
# building and what vcpkg does to the installed files is not run.
cmake_minimum_required(VERSION 3.25)
set(port "${SOURCE}/packaging/vcpkg")
set(build "${WORK}/vcpkg")
set(CURRENT_PACKAGES_DIR "${build}/packages")
set(CURRENT_PORT_DIR "${port}")
set(called "")

function(called_once name)
  if("${name}" IN_LIST called)
    message(FATAL_ERROR "the portfile calls ${name} twice")
  endif()
  set(called "${called};${name}" PARENT_SCOPE)
endfunction()

macro(vcpkg_find_acquire_program program)
  called_once(vcpkg_find_acquire_program)
  find_program(${program} NAMES pkg-config pkgconf REQUIRED)
endmacro()

macro(vcpkg_cmake_configure)
  called_once(vcpkg_cmake_configure)
  cmake_parse_arguments(arg "" "SOURCE_PATH" "OPTIONS" ${ARGN})
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -S "${arg_SOURCE_PATH}" -B "${build}/build" -G Ninja -DCMAKE_BUILD_TYPE=Release
            "-DCMAKE_INSTALL_PREFIX=${CURRENT_PACKAGES_DIR}" -DCMAKE_INSTALL_LIBDIR=lib -DBUILD_SHARED_LIBS=OFF ${arg_OPTIONS}
    OUTPUT_QUIET ERROR_VARIABLE messages COMMAND_ERROR_IS_FATAL ANY)
  if(messages MATCHES "not used by the project")
    message(FATAL_ERROR "the portfile sets an option that the project does not know:\n${messages}")
  endif()
endmacro()

macro(vcpkg_cmake_install)
  called_once(vcpkg_cmake_install)
endmacro()

# The folder that is to be moved must be one that the install rules fill.
macro(vcpkg_cmake_config_fixup)
  called_once(vcpkg_cmake_config_fixup)
  cmake_parse_arguments(arg "" "CONFIG_PATH" "" ${ARGN})
  file(READ "${build}/build/cmake_install.cmake" rules)
  if(NOT rules MATCHES "/${arg_CONFIG_PATH}\"")
    message(FATAL_ERROR "nothing is installed into ${arg_CONFIG_PATH}")
  endif()
endmacro()

macro(vcpkg_fixup_pkgconfig)
  called_once(vcpkg_fixup_pkgconfig)
endmacro()

macro(vcpkg_install_copyright)
  called_once(vcpkg_install_copyright)
  cmake_parse_arguments(arg "" "" "FILE_LIST" ${ARGN})
  foreach(file IN LISTS arg_FILE_LIST)
    if(NOT EXISTS "${file}")
      message(FATAL_ERROR "there is no ${file}")
    endif()
  endforeach()
endmacro()

file(READ "${port}/vcpkg.json" manifest)
string(JSON name GET "${manifest}" name)
string(JSON version GET "${manifest}" version)
file(READ "${SOURCE}/CMakeLists.txt" project)
if(NOT name STREQUAL "pagedkv" OR NOT project MATCHES "project\\(pagedkv VERSION ${version} ")
  message(FATAL_ERROR "vcpkg.json names ${name} ${version}, which is not the project")
endif()

file(REMOVE_RECURSE "${build}")
file(MAKE_DIRECTORY "${CURRENT_PACKAGES_DIR}")
include("${port}/portfile.cmake")
foreach(step IN ITEMS vcpkg_cmake_configure vcpkg_cmake_install vcpkg_cmake_config_fixup vcpkg_install_copyright)
  if(NOT step IN_LIST called)
    message(FATAL_ERROR "the portfile does not call ${step}")
  endif()
endforeach()
message("the port of ${name} ${version} configures")
