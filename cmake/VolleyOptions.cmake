# Language level, warnings and sanitizers: the flags that every target of the project is built with.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

add_library(volley_flags INTERFACE)
# GCC contracts a*b+c to a fused multiply-add even with -std=c++20; P1 needs every rounding to be the
# one that the source names.
target_compile_options(volley_flags INTERFACE
  -ffp-contract=off -fno-omit-frame-pointer
  -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Werror)
target_compile_definitions(volley_flags INTERFACE $<$<CONFIG:Debug>:_GLIBCXX_ASSERTIONS>)

if(VOLLEY_SANITIZE STREQUAL "address")
  target_compile_options(volley_flags INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=all)
  target_link_options(volley_flags INTERFACE -fsanitize=address,undefined)
elseif(VOLLEY_SANITIZE STREQUAL "thread")
  target_compile_options(volley_flags INTERFACE -fsanitize=thread)
  target_link_options(volley_flags INTERFACE -fsanitize=thread)
  # GCC warns that it does not model atomic_thread_fence under TSan; the fences have their own test.
  target_compile_options(volley_flags INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-tsan>)
elseif(VOLLEY_SANITIZE)
  message(FATAL_ERROR "VOLLEY_SANITIZE is '${VOLLEY_SANITIZE}'; it must be address, thread or empty")
endif()

if(VOLLEY_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "VOLLEY_FUZZ needs clang, the compiler is ${CMAKE_CXX_COMPILER_ID}")
  endif()
  target_compile_options(volley_flags INTERFACE
    -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all)
  target_link_options(volley_flags INTERFACE -fsanitize=address,undefined)
endif()
