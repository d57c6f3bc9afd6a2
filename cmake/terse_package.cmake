# The package configuration: for the build tree always, so that a project which adds this one can
# export its own targets; for the install tree where TERSE_INSTALL is on.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(terse_config_dir "${CMAKE_INSTALL_DATADIR}/cmake/terse")
configure_package_config_file(
  "${PROJECT_SOURCE_DIR}/cmake/terseConfig.cmake.in" "${PROJECT_BINARY_DIR}/terseConfig.cmake"
  INSTALL_DESTINATION "${terse_config_dir}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(
  "${PROJECT_BINARY_DIR}/terseConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)

export(TARGETS terse NAMESPACE terse:: FILE "${PROJECT_BINARY_DIR}/terseTargets.cmake")

if(TERSE_INSTALL)
  install(TARGETS terse EXPORT terseTargets
          FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  install(EXPORT terseTargets NAMESPACE terse:: DESTINATION "${terse_config_dir}")
  install(FILES "${PROJECT_BINARY_DIR}/terseConfig.cmake"
                "${PROJECT_BINARY_DIR}/terseConfigVersion.cmake"
          DESTINATION "${terse_config_dir}")
  install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}")
endif()
