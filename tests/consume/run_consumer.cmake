# Configures, builds and runs one consumer project as its user would. Variables:
#   CONSUMER      its folder                 WORK_DIR  where to build it (emptied first)
#   GENERATOR, COMPILER                      EXPECTED  the version it must print
#   OPTIONS       what it is configured with
#   INSTALL_FROM  if set, a build tree that is installed to WORK_DIR/prefix first
function(run_step)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE result OUTPUT_VARIABLE output
                  ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "failed: ${ARGV}\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE "${WORK_DIR}")
if(INSTALL_FROM)
  run_step("${CMAKE_COMMAND}" --install "${INSTALL_FROM}" --prefix "${WORK_DIR}/prefix")
  list(APPEND OPTIONS "-DCMAKE_PREFIX_PATH=${WORK_DIR}/prefix")
endif()
run_step("${CMAKE_COMMAND}" -S "${CONSUMER}" -B "${WORK_DIR}/build" -G "${GENERATOR}"
         "-DCMAKE_CXX_COMPILER=${COMPILER}" ${OPTIONS})
run_step("${CMAKE_COMMAND}" --build "${WORK_DIR}/build" --config Release)
find_program(program consumer PATHS "${WORK_DIR}/build" "${WORK_DIR}/build/Release"
             NO_DEFAULT_PATH REQUIRED)
run_step("${program}")
if(NOT output STREQUAL "terse ${EXPECTED}\n")
  message(FATAL_ERROR "the consumer printed '${output}', not 'terse ${EXPECTED}'")
endif()
