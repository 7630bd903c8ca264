# Debian packages: libpagedkvX.Y (the shared library), libpagedkv-dev (headers, static library), pagedkv (the program),
# php-pagedkv (the PHP classes).
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME pagedkv)
set(CPACK_PACKAGE_VENDOR "pagedkv")
set(CPACK_PACKAGE_CONTACT "The pagedkv authors")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_VERBATIM_VARIABLES ON)
set(CPACK_STRIP_FILES ON)
set(CPACK_PACKAGE_DIRECTORY "${PROJECT_SOURCE_DIR}/dist")
set(CPACK_COMPONENTS_ALL library dev php)
if(TARGET pagedkv_program)
  list(APPEND CPACK_COMPONENTS_ALL tool)
endif()

set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_RELEASE 1)
set(soname_package "libpagedkv${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}")
set(this_version "${PROJECT_VERSION}-${CPACK_DEBIAN_PACKAGE_RELEASE}")

set(CPACK_DEBIAN_LIBRARY_PACKAGE_NAME "${soname_package}")
set(CPACK_DEBIAN_LIBRARY_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_LIBRARY_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
set(CPACK_DEBIAN_LIBRARY_DESCRIPTION "${PROJECT_DESCRIPTION}: shared library")

# A consumer of the shared library needs no dependency of pagedkv; who links the static one needs these two.
set(CPACK_DEBIAN_DEV_PACKAGE_NAME libpagedkv-dev)
set(CPACK_DEBIAN_DEV_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEV_PACKAGE_DEPENDS "${soname_package} (= ${this_version})")
set(CPACK_DEBIAN_DEV_PACKAGE_SUGGESTS "libtbb-dev, libhwy-dev")
set(CPACK_DEBIAN_DEV_DESCRIPTION "${PROJECT_DESCRIPTION}: headers, static library, CMake package, pkg-config file")

set(CPACK_DEBIAN_TOOL_PACKAGE_NAME pagedkv)
set(CPACK_DEBIAN_TOOL_PACKAGE_SECTION utils)
set(CPACK_DEBIAN_TOOL_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_TOOL_DESCRIPTION "${PROJECT_DESCRIPTION}: program that replays traces and measures")

set(CPACK_DEBIAN_PHP_PACKAGE_NAME php-pagedkv)
set(CPACK_DEBIAN_PHP_PACKAGE_SECTION php)
set(CPACK_DEBIAN_PHP_PACKAGE_ARCHITECTURE all)
set(CPACK_DEBIAN_PHP_PACKAGE_DEPENDS "php-cli (>= 2:8.1), php-ffi, ${soname_package}")
set(CPACK_DEBIAN_PHP_DESCRIPTION "${PROJECT_DESCRIPTION}: the cache of one head for PHP")

install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DATADIR}/doc/php-pagedkv" COMPONENT php
        RENAME copyright)
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DATADIR}/doc/${soname_package}"
        COMPONENT library RENAME copyright)
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DATADIR}/doc/libpagedkv-dev" COMPONENT dev
        RENAME copyright)
if(TARGET pagedkv_program)
  install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DATADIR}/doc/pagedkv" COMPONENT tool
          RENAME copyright)
endif()
include(CPack)
