# What the project's own programs (tests, examples, benchmarks) share. Nothing here reaches
# terse::terse, so nothing here reaches a user.
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(Eigen3 3.3 QUIET NO_MODULE)
find_package(Python3 COMPONENTS Interpreter QUIET)

# terse_options: warnings and sanitizers.
add_library(terse_options INTERFACE)
target_link_libraries(terse_options INTERFACE terse::terse Threads::Threads)
target_compile_options(
  terse_options
  INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wconversion>"
  "$<$<AND:$<BOOL:${TERSE_WERROR}>,$<COMPILE_LANGUAGE:CXX>>:-Werror>"
  "$<$<AND:$<BOOL:${TERSE_WERROR}>,$<COMPILE_LANGUAGE:CUDA>>:SHELL:-Werror all-warnings>")
if(TERSE_SANITIZE)
  string(REGEX REPLACE "[;, ]+" "," terse_sanitizers "${TERSE_SANITIZE}")
  target_compile_options(terse_options INTERFACE
                         -fsanitize=${terse_sanitizers} -fno-sanitize-recover=all
                         -fno-omit-frame-pointer -g1
                         # g++ loses track of initialisation in instrumented code.
                         $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  target_link_options(terse_options INTERFACE -fsanitize=${terse_sanitizers})
endif()

# terse_kernels: the kernels of attention on hosts, which no policy changes, compiled once. The first
# example, the tests of headers and those of consumers compile them as users of headers alone do.
file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/terse_kernels.cpp"
     CONTENT "#include \"terse/cpu/kernels.hpp\"\n" @ONLY)
add_library(terse_kernels STATIC "${PROJECT_BINARY_DIR}/terse_kernels.cpp")
target_compile_definitions(terse_kernels PUBLIC TERSE_SEPARATE_KERNELS)
target_link_libraries(terse_kernels PUBLIC terse::terse PRIVATE terse_options)

# Source style, on whatever the repository tracks.
if(Python3_FOUND)
  add_custom_target(format
                    COMMAND Python3::Interpreter "${PROJECT_SOURCE_DIR}/cmake/check_format.py" --fix
                    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" VERBATIM)
  add_custom_target(tidy
                    COMMAND Python3::Interpreter "${PROJECT_SOURCE_DIR}/cmake/check_tidy.py"
                            --build "${PROJECT_BINARY_DIR}"
                    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" VERBATIM USES_TERMINAL)
endif()
