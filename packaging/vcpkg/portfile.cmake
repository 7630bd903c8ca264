# An overlay port that builds the tree it lies in: vcpkg install pagedkv --overlay-ports=packaging
get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)
vcpkg_find_acquire_program(PKGCONFIG)

vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS
    -DPAGEDKV_BUILD_TESTS=OFF
    -DPAGEDKV_BUILD_TOOLS=OFF
    -DPAGEDKV_BUILD_BENCH=OFF
    -DPAGEDKV_BUILD_EXAMPLES=OFF
    -DPAGEDKV_BUILD_SHARED=OFF
    "-DPKG_CONFIG_EXECUTABLE=${PKGCONFIG}")
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH lib/cmake/pagedkv)
vcpkg_fixup_pkgconfig()
file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/debug/include" "${CURRENT_PACKAGES_DIR}/debug/share")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
