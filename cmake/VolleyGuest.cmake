# volley_guest_test(NAME cluster_guest_test COMMAND bash cluster_test.sh $<TARGET_FILE:volley>
#                   CPUS 2 MEMORY_MB 1024 TIMEOUT 300 ENVIRONMENT A=b)
#
# A test over real RDMA verbs, label rdma: runs COMMAND in the guest of tests/guest/run, which has two
# Soft-RoCE devices and sees the host's files at the same paths. COMMAND starts in the current source
# folder, with BUILD (the build folder), RESULTS (<current build folder>/<NAME>; what is written
# there stays, also until the next run, and kernel.log comes to it) and the variables that tests/guest/run lists. It passes with exit
# status 0, is skipped with 77. CPUS (1) is best left at 1 unless the command spins; TIMEOUT (120) is in
# seconds. Only one guest runs at a time.
function(volley_guest_test)
  cmake_parse_arguments(ARG "" "NAME;CPUS;MEMORY_MB;TIMEOUT" "COMMAND;ENVIRONMENT" ${ARGN})
  if(NOT ARG_NAME OR NOT ARG_COMMAND OR ARG_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "volley_guest_test needs NAME and COMMAND; not understood: '${ARG_UNPARSED_ARGUMENTS}'")
  endif()
  foreach(default CPUS=1 MEMORY_MB=512 TIMEOUT=120)
    string(REGEX MATCH "^(.*)=(.*)$" unused ${default})
    if(NOT ARG_${CMAKE_MATCH_1})
      set(ARG_${CMAKE_MATCH_1} ${CMAKE_MATCH_2})
    endif()
  endforeach()
  set(environment -e BUILD=${PROJECT_BINARY_DIR})
  foreach(variable IN LISTS ARG_ENVIRONMENT)
    list(APPEND environment -e ${variable})
  endforeach()
  set(results ${CMAKE_CURRENT_BINARY_DIR}/${ARG_NAME})
  add_test(NAME ${ARG_NAME}
    COMMAND ${PROJECT_SOURCE_DIR}/tests/guest/run -s ${ARG_CPUS} -m ${ARG_MEMORY_MB} -t ${ARG_TIMEOUT}
      -r ${results} ${environment} ${ARG_COMMAND}
    WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
  volley_guest_properties(${ARG_NAME} ${ARG_TIMEOUT})
endfunction()

# For tests that call tests/guest/run themselves.
function(volley_guest_properties name timeout_s)
  math(EXPR ctest_timeout_s "${timeout_s} + 20") # The guest ends itself first, and says why.
  set_tests_properties(${name} PROPERTIES
    LABELS rdma FIXTURES_REQUIRED rdma_guest RUN_SERIAL TRUE SKIP_RETURN_CODE 77 TIMEOUT ${ctest_timeout_s})
endfunction()
