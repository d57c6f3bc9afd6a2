# Functions that register tests.
#
#   terse_add_test(NAME name SOURCES file... [LIBRARIES target...] [LABELS label...])
#
# adds the executable test_<name> (dots become underscores) and the ctest <name>. Labels:
#   <folder>   where the test lives (by glob)
#   sanitize   run under ASan and UBSan; by glob: the folders that move bytes (terse_sanitized_folders)
#   threads    run under ThreadSanitizer; by glob: *_threads_test.cpp
#   slow       too slow for a sanitizer; by glob: *_slow_test.cpp
#   model      reads TERSE_TEST_MODEL or TERSE_TEST_TEXT_DIR
# The target tests_<label> builds the tests of one label.
if(NOT Python3_FOUND)
  message(FATAL_ERROR "terse: the tests need a Python 3 interpreter (or TERSE_BUILD_TESTS=OFF)")
endif()
find_package(Catch2 3 QUIET)
if(NOT Catch2_FOUND)
  find_package(Catch2 2.13 QUIET)
endif()
if(NOT Catch2_FOUND)
  message(FATAL_ERROR "terse: the tests need Catch2 2.13 or 3 (Debian: catch2), "
                      "or TERSE_BUILD_TESTS=OFF")
endif()
message(STATUS "terse: tests use Catch2 ${Catch2_VERSION}")

# Catch2's implementation and main() are compiled once; every test links the object.
add_library(terse_test_main OBJECT "${CMAKE_CURRENT_SOURCE_DIR}/support/main.cpp")
target_link_libraries(terse_test_main PUBLIC terse_options terse_kernels Catch2::Catch2)
target_include_directories(terse_test_main PUBLIC "${PROJECT_SOURCE_DIR}/tests"
                                                  "${PROJECT_SOURCE_DIR}")
target_compile_options(terse_test_main PRIVATE $<$<CONFIG:Release>:-O0>)
target_compile_definitions(terse_test_main
                           PUBLIC TERSE_TEST_DATA_DIR="${PROJECT_SOURCE_DIR}/tests/data")

set(terse_sanitized_folders cache check cpu evict layout quant)
set_property(GLOBAL PROPERTY TERSE_TEST_SOURCES "")
set_property(GLOBAL PROPERTY TERSE_TEST_LABELS "")

function(terse_add_test)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "NAME" "SOURCES;LIBRARIES;LABELS")
  if(NOT arg_NAME OR NOT arg_SOURCES OR arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "terse_add_test(NAME n SOURCES f... [LIBRARIES t...] [LABELS l...])")
  endif()
  list(REMOVE_DUPLICATES arg_LABELS)

  string(REPLACE "." "_" target "test_${arg_NAME}")
  add_executable(${target} ${arg_SOURCES})
  target_link_libraries(${target} PRIVATE terse_test_main ${arg_LIBRARIES})
  # Half the compile time of -O3, and fast enough for everything here. A sanitizer that knows every
  # access has its own preset's level: -O0 takes a third of the compile time of -O1 there.
  if(NOT TERSE_SANITIZE MATCHES "address")
    target_compile_options(${target}
                           PRIVATE $<$<AND:$<CONFIG:Release>,$<COMPILE_LANGUAGE:CXX>>:-O1>)
  endif()
  add_test(NAME ${arg_NAME} COMMAND ${target})
  set_tests_properties(
    ${arg_NAME} PROPERTIES LABELS "${arg_LABELS}" SKIP_RETURN_CODE 77 TIMEOUT 900
                           ENVIRONMENT "UBSAN_OPTIONS=print_stacktrace=1")

  foreach(source IN LISTS arg_SOURCES)
    cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}" NORMALIZE)
    set_property(GLOBAL APPEND PROPERTY TERSE_TEST_SOURCES "${source}")
  endforeach()
  foreach(label IN LISTS arg_LABELS)
    set_property(GLOBAL APPEND PROPERTY TERSE_TEST_LABELS ${label})
    set_property(GLOBAL APPEND PROPERTY TERSE_TESTS_OF_${label} ${target})
  endforeach()
endfunction()

# Registers every *_test.cpp below a folder of tests/ that no terse_add_test has named yet.
function(terse_glob_tests folder)
  set(root "${PROJECT_SOURCE_DIR}/tests")
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS "${root}/${folder}/*_test.cpp")
  get_property(named GLOBAL PROPERTY TERSE_TEST_SOURCES)
  foreach(source IN LISTS sources)
    if(source IN_LIST named)
      continue()
    endif()
    cmake_path(RELATIVE_PATH source BASE_DIRECTORY "${root}" OUTPUT_VARIABLE name)
    string(REGEX REPLACE "_test\\.cpp$" "" name "${name}")
    string(REPLACE "/" "." name "${name}")
    set(labels ${folder})
    if(folder IN_LIST terse_sanitized_folders AND NOT name MATCHES "_slow$")
      list(APPEND labels sanitize)
    endif()
    set(libraries "")
    if(name MATCHES "_(threads|slow)$")
      list(APPEND labels ${CMAKE_MATCH_1})
    endif()
    if(folder STREQUAL "interop")
      if(TARGET Eigen3::Eigen)
        set(libraries Eigen3::Eigen)
      elseif(name MATCHES "eigen")
        message(STATUS "terse: no Eigen, so no test ${name}")
        continue()
      endif()
    endif()
    terse_add_test(NAME ${name} SOURCES "${source}" LIBRARIES ${libraries} LABELS ${labels})
  endforeach()
endfunction()

# Registers every *_test.py below tests/ (unittest files that run themselves).
function(terse_add_python_tests)
  set(root "${PROJECT_SOURCE_DIR}/tests")
  file(GLOB_RECURSE scripts CONFIGURE_DEPENDS "${root}/*_test.py")
  foreach(script IN LISTS scripts)
    cmake_path(RELATIVE_PATH script BASE_DIRECTORY "${root}" OUTPUT_VARIABLE name)
    string(REGEX REPLACE "_test\\.py$" "" name "${name}")
    string(REPLACE "/" "." name "${name}")
    add_test(NAME ${name} COMMAND Python3::Interpreter -B "${script}")
    set_tests_properties(${name} PROPERTIES LABELS python SKIP_RETURN_CODE 77 TIMEOUT 300)
  endforeach()
endfunction()

# One build target a label, so that a leg builds only what it runs.
function(terse_add_label_targets)
  get_property(labels GLOBAL PROPERTY TERSE_TEST_LABELS)
  list(REMOVE_DUPLICATES labels)
  foreach(label IN LISTS labels)
    get_property(targets GLOBAL PROPERTY TERSE_TESTS_OF_${label})
    add_custom_target(tests_${label} DEPENDS ${targets})
  endforeach()
endfunction()
