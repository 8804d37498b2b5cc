# find_package(clipsight CONFIG [COMPONENTS ...]), with CMAKE_PREFIX_PATH from
#   python -c "import clipsight; print(clipsight.cmake_prefix_path)"
#
#   clipsight::onnxruntime   <clipsight/session.h>, or <clipsight/clipsight.h> in C: sessions over .onnx files
#   clipsight::torch         the same over .pt and .pt2 files, and the ops for a program that calls LibTorch by itself.
#                            Needs find_package(Torch), which COMPONENTS torch does: it takes the torch on
#                            CMAKE_PREFIX_PATH, else the Python package that is installed beside clipsight.
#   clipsight::kernels       <clipsight/kernels.h>: the CPU kernels, a static library without any framework
#   clipsight::kernels_cuda  <clipsight/kernels_cuda.h>, where they were built. Needs find_package(CUDAToolkit), which
#                            COMPONENTS kernels_cuda does.
if(CMAKE_VERSION VERSION_LESS 3.24)
  set(clipsight_FOUND FALSE)
  set(clipsight_NOT_FOUND_MESSAGE "clipsight: CMake must be 3.24 or newer, got ${CMAKE_VERSION}")
  return()
endif()

include(CMakeFindDependencyMacro)
get_filename_component(clipsight_DIRECTORY "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if("torch" IN_LIST clipsight_FIND_COMPONENTS)
  find_dependency(Torch PATHS "${clipsight_DIRECTORY}/../torch")
endif()
if("kernels_cuda" IN_LIST clipsight_FIND_COMPONENTS)
  find_dependency(CUDAToolkit)
endif()

get_property(_clipsight_languages GLOBAL PROPERTY ENABLED_LANGUAGES)

# An imported library `name` at `file` in the package folder.
function(_clipsight_library name type file)
  add_library(clipsight::${name} ${type} IMPORTED)
  set_target_properties(clipsight::${name} PROPERTIES
    IMPORTED_LOCATION "${clipsight_DIRECTORY}/${file}"
    INTERFACE_INCLUDE_DIRECTORIES "${clipsight_DIRECTORY}/include")
  if("CXX" IN_LIST _clipsight_languages)  # a C program uses clipsight.h alone
    target_compile_features(clipsight::${name} INTERFACE cxx_std_17)
  endif()
endfunction()

if(NOT TARGET clipsight::kernels)
  _clipsight_library(kernels STATIC libclipsight_kernels.a)
  if(EXISTS "${clipsight_DIRECTORY}/libclipsight_kernels_cuda.a")
    _clipsight_library(kernels_cuda STATIC libclipsight_kernels_cuda.a)
    target_link_libraries(clipsight::kernels_cuda INTERFACE clipsight::kernels CUDA::cudart_static)
  endif()

  _clipsight_library(session SHARED libclipsight.so)
  add_library(clipsight::onnxruntime INTERFACE IMPORTED)
  target_link_libraries(clipsight::onnxruntime INTERFACE clipsight::session)

  # The back end is compiled by the program that uses it, since torch's C++ interface differs from release to release;
  # the ops are one library for all releases.
  _clipsight_library(torch_ops SHARED libclipsight_torch.so)
  add_library(clipsight::torch INTERFACE IMPORTED)
  target_sources(clipsight::torch INTERFACE "${clipsight_DIRECTORY}/share/clipsight/torch_backend.cpp")
  # A generator expression: find_package(Torch) may come after this one. Without it, the last name is the error message.
  target_link_libraries(clipsight::torch INTERFACE
    clipsight::session
    $<LINK_LIBRARY:clipsight_needed,clipsight::torch_ops>
    $<IF:$<TARGET_EXISTS:torch>,torch,clipsight::torch_needs_find_package_Torch>
    $<$<TARGET_EXISTS:torch_library>:torch_library>)
endif()

# No symbol of the ops is called by name, so a linker that was told --as-needed would drop the library and its ops.
set(CMAKE_LINK_LIBRARY_USING_clipsight_needed "LINKER:--push-state,--no-as-needed" "<LINK_ITEM>" "LINKER:--pop-state")
set(CMAKE_LINK_LIBRARY_USING_clipsight_needed_SUPPORTED TRUE)

foreach(component IN LISTS clipsight_FIND_COMPONENTS)
  set(clipsight_${component}_FOUND FALSE)
  if(TARGET clipsight::${component})
    set(clipsight_${component}_FOUND TRUE)
  elseif(clipsight_FIND_REQUIRED_${component})
    set(clipsight_FOUND FALSE)
    set(clipsight_NOT_FOUND_MESSAGE "clipsight: a component must be kernels, kernels_cuda (where CUDA was built), "
      "onnxruntime or torch, got ${component}")
    string(CONCAT clipsight_NOT_FOUND_MESSAGE ${clipsight_NOT_FOUND_MESSAGE})
  endif()
endforeach()
