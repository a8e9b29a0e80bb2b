# volley_library(NAME scheduler LAYER 2 SRCS a.cc DEPS base protocol EXTERNAL yaml-cpp)
#
# A module of the engine. It may depend only on modules of a lower layer, sees its own private headers
# and the contracts in include/, and nothing else: a wrong edge stops the configuration.
#   layer 0  base
#   layer 1  config cache protocol kernels proto rdma gpu
#   layer 2  transport model tokenizer scheduler perf rpc
#   layer 3  engine control frontend planner simulation
#   layer 4  daemon bench
#   layer 5  cli
function(volley_library)
  cmake_parse_arguments(ARG "" "NAME;LAYER" "SRCS;DEPS;EXTERNAL;PUBLIC_EXTERNAL" ${ARGN})
  add_library(volley_${ARG_NAME} STATIC ${ARG_SRCS})
  add_library(volley::${ARG_NAME} ALIAS volley_${ARG_NAME})
  set_target_properties(volley_${ARG_NAME} PROPERTIES VOLLEY_LAYER ${ARG_LAYER})
  target_include_directories(volley_${ARG_NAME} PUBLIC ${PROJECT_SOURCE_DIR}/include
                                                PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_link_libraries(volley_${ARG_NAME} PRIVATE volley_flags)
  foreach(dep IN LISTS ARG_DEPS)
    get_target_property(dep_layer volley_${dep} VOLLEY_LAYER)
    if(NOT dep_layer LESS ARG_LAYER)
      message(FATAL_ERROR "${ARG_NAME} (layer ${ARG_LAYER}) may not depend on ${dep} (layer ${dep_layer})")
    endif()
    target_link_libraries(volley_${ARG_NAME} PUBLIC volley::${dep})
  endforeach()
  target_link_libraries(volley_${ARG_NAME} PUBLIC ${ARG_PUBLIC_EXTERNAL} PRIVATE ${ARG_EXTERNAL})
endfunction()

# volley_test(NAME wire_test LABEL unit SRCS wire_test.cc DEPS protocol)
#
# A GoogleTest program under one label: unit, sim, e2e, rdma or gpu. TIMEOUT is in seconds.
function(volley_test)
  cmake_parse_arguments(ARG "" "NAME;LABEL;TIMEOUT" "SRCS;DEPS;EXTERNAL;ARGS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_include_directories(${ARG_NAME} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(${ARG_NAME} PRIVATE
    VOLLEY_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data"
    VOLLEY_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_link_libraries(${ARG_NAME} PRIVATE volley_flags GTest::gtest_main GTest::gmock ${ARG_EXTERNAL})
  foreach(dep IN LISTS ARG_DEPS)
    target_link_libraries(${ARG_NAME} PRIVATE volley::${dep})
  endforeach()
  add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME} ${ARG_ARGS})
  set_tests_properties(${ARG_NAME} PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT})
endfunction()
