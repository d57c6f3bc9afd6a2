# CUDA for the project's own programs: code for sm_90a and PTX for anything from sm_80 on, unless
# CMAKE_CUDA_ARCHITECTURES says otherwise. Users compile the headers with flags of their own.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES 80-virtual 90a-real)
endif()
enable_language(CUDA)
# Not CMAKE_CUDA_STANDARD: CMake 3.25 does not know how to ask nvcc 13 for C++20.
add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>")
