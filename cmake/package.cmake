# What C and C++ programs need from the wheel, all of it inside the package folder and without an absolute path:
# headers, the static kernels, the sources of the torch back end, the CMake package and the pkg-config file.
include(CMakePackageConfigHelpers)

set(KERNELS clipsight_kernels)
set(OPS back_step channel_reduce spline_upsample sobel_temporal selective_relevance saliency_tube)
list(TRANSFORM OPS REPLACE "(.+)" "csrc/ops/\\1.h" OUTPUT_VARIABLE OP_HEADERS)
set(HEADERS clipsight.h dtype.h kernels.h session.h torch.h)
if(TARGET clipsight_kernels_cuda)
  list(APPEND KERNELS clipsight_kernels_cuda)
  list(APPEND HEADERS kernels_cuda.h)
  list(TRANSFORM OPS REPLACE "(.+)" "csrc/ops/\\1_cuda.h" OUTPUT_VARIABLE CUDA_HEADERS)
endif()
list(TRANSFORM HEADERS PREPEND csrc/include/clipsight/)

install(TARGETS ${KERNELS} ARCHIVE DESTINATION clipsight)
install(FILES ${HEADERS} DESTINATION clipsight/include/clipsight)
install(FILES ${OP_HEADERS} ${CUDA_HEADERS} DESTINATION clipsight/include/clipsight/ops)
install(FILES csrc/core/host_device.h csrc/core/parallel.h csrc/core/simd_level.h csrc/core/types.h
  DESTINATION clipsight/include/clipsight/core)
install(FILES csrc/session/torch_backend.cpp csrc/session/backend.h DESTINATION clipsight/share/clipsight)

write_basic_package_version_file(${PROJECT_BINARY_DIR}/clipsightConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES cmake/clipsightConfig.cmake ${PROJECT_BINARY_DIR}/clipsightConfigVersion.cmake
  DESTINATION clipsight/lib/cmake/clipsight)
configure_file(cmake/clipsight.pc.in ${PROJECT_BINARY_DIR}/clipsight.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/clipsight.pc DESTINATION clipsight/lib/pkgconfig)
