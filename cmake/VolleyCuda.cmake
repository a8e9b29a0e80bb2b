# The CUDA toolkit, when VOLLEY_CUDA is on. CMake 3.25 emits no -std for nvcc 13, so it is passed by hand.
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED OFF)
set(CMAKE_CUDA_ARCHITECTURES 80 89 90a)
enable_language(CUDA)
set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} -std=c++20 -fmad=false -Werror all-warnings")
