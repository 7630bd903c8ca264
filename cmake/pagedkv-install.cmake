# Install rules: headers, libraries, the CMake package, the pkg-config file, the PHP classes. Components: library, dev,
# tool, php.
include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/pagedkv")
get_target_property(type pagedkv TYPE)
if(type STREQUAL "SHARED_LIBRARY")
  set(shared_target pagedkv)
else()
  set(static_target pagedkv)
  if(TARGET pagedkv_shared)
    set(shared_target pagedkv_shared)
  endif()
endif()
# Two export sets, so that who wants the shared library need not have what the static one links.
foreach(kind IN ITEMS static shared)
  if(DEFINED ${kind}_target)
    set_target_properties(${${kind}_target} PROPERTIES EXPORT_NAME ${kind})
    install(
      TARGETS ${${kind}_target}
      EXPORT pagedkv-${kind}
      ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT dev
      LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT library NAMELINK_COMPONENT dev
      FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT dev)
    install(EXPORT pagedkv-${kind} NAMESPACE pagedkv:: DESTINATION "${package_dir}" COMPONENT dev)
  endif()
endforeach()
if(TARGET pagedkv_program)
  install(TARGETS pagedkv_program EXPORT pagedkv-tool RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}" COMPONENT tool)
  install(EXPORT pagedkv-tool NAMESPACE pagedkv:: DESTINATION "${package_dir}" COMPONENT tool)
endif()

configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/pagedkv-config.cmake.in"
                              "${CMAKE_CURRENT_BINARY_DIR}/pagedkv-config.cmake" INSTALL_DESTINATION "${package_dir}")
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/pagedkv-config-version.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/pagedkv-config.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/pagedkv-config-version.cmake" DESTINATION "${package_dir}" COMPONENT dev)

# pkg-config: relative to the file itself, so that the prefix may move.
set(link_private "-ltbb -lhwy -lstdc++ -lm")
set(link_public "")
if(type STREQUAL "STATIC_LIBRARY" AND NOT TARGET pagedkv_shared)
  set(link_public " ${link_private}")
endif()
file(RELATIVE_PATH pc_prefix "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
configure_file("${PROJECT_SOURCE_DIR}/cmake/pagedkv.pc.in" "${CMAKE_CURRENT_BINARY_DIR}/pagedkv.pc" @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/pagedkv.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig" COMPONENT dev)

# The PHP classes, which call the shared library, where Debian's PHP looks for them.
set(php_classes "${PROJECT_SOURCE_DIR}/bindings/php/PagedKV")
if(DEFINED shared_target AND EXISTS "${php_classes}")
  file(STRINGS "${php_classes}/KVCache.php" php_loads REGEX "'libpagedkv\\.so\\.${PROJECT_VERSION_MAJOR}\\.${PROJECT_VERSION_MINOR}'")
  if(NOT php_loads)
    message(FATAL_ERROR "KVCache.php loads another libpagedkv than that of ${PROJECT_VERSION}")
  endif()
  install(DIRECTORY "${php_classes}" DESTINATION "${CMAKE_INSTALL_DATADIR}/php" COMPONENT php)
endif()
