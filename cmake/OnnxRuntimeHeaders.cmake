# Target clipsight_onnxruntime_headers: the headers of ONNX Runtime's C API, which is all that a build needs of it.
# From CLIPSIGHT_ONNXRUNTIME_INCLUDE_DIR (CMake or environment), else the system, else, on Debian and Ubuntu, the
# package libonnxruntime-dev of a suite that has it, unpacked in the build folder: nothing is installed. Without headers
# the target does not exist.
set(CLIPSIGHT_ONNXRUNTIME "$ENV{CLIPSIGHT_ONNXRUNTIME}" CACHE STRING
  "Build the ONNX Runtime custom ops: ON, OFF or AUTO (where the headers are found)")
if(CLIPSIGHT_ONNXRUNTIME STREQUAL "")
  set(CLIPSIGHT_ONNXRUNTIME AUTO)
endif()
set_property(CACHE CLIPSIGHT_ONNXRUNTIME PROPERTY STRINGS ON OFF AUTO)
set(CLIPSIGHT_ONNXRUNTIME_INCLUDE_DIR "$ENV{CLIPSIGHT_ONNXRUNTIME_INCLUDE_DIR}" CACHE PATH
  "Folder of onnxruntime_c_api.h")
if(CLIPSIGHT_ONNXRUNTIME STREQUAL "OFF")
  return()
endif()

string(CONCAT clipsight_ort_help
  "install libonnxruntime-dev, or unpack a release archive of ONNX Runtime (1.18 or newer) and set "
  "CLIPSIGHT_ONNXRUNTIME_INCLUDE_DIR to its folder include; then configure again in an empty build folder")

if(CLIPSIGHT_ONNXRUNTIME_INCLUDE_DIR)
  if(NOT EXISTS "${CLIPSIGHT_ONNXRUNTIME_INCLUDE_DIR}/onnxruntime_c_api.h")
    message(FATAL_ERROR "CLIPSIGHT_ONNXRUNTIME_INCLUDE_DIR must hold onnxruntime_c_api.h, got "
                        "${CLIPSIGHT_ONNXRUNTIME_INCLUDE_DIR}")
  endif()
  set(clipsight_ort_headers "${CLIPSIGHT_ONNXRUNTIME_INCLUDE_DIR}")
else()
  set(clipsight_ort_fetched ${CMAKE_BINARY_DIR}/onnxruntime-headers)
  macro(clipsight_find_ort_headers)
    find_path(CLIPSIGHT_ONNXRUNTIME_FOUND onnxruntime_c_api.h HINTS ${clipsight_ort_fetched}/x/usr/include
      PATH_SUFFIXES onnxruntime onnxruntime/core/session)
  endmacro()
  clipsight_find_ort_headers()
  if(NOT CLIPSIGHT_ONNXRUNTIME_FOUND AND NOT EXISTS ${clipsight_ort_fetched})  # tried once per build folder
    execute_process(COMMAND sh ${CMAKE_CURRENT_LIST_DIR}/fetch_onnxruntime_headers.sh ${clipsight_ort_fetched}
      OUTPUT_VARIABLE clipsight_ort_output ERROR_VARIABLE clipsight_ort_output RESULT_VARIABLE clipsight_ort_failed)
    if(clipsight_ort_failed)
      message(STATUS "ONNX Runtime headers could not be fetched: ${clipsight_ort_output}")
    endif()
    clipsight_find_ort_headers()
  endif()
  set(clipsight_ort_headers "${CLIPSIGHT_ONNXRUNTIME_FOUND}")
endif()

if(clipsight_ort_headers)
  file(STRINGS "${clipsight_ort_headers}/onnxruntime_c_api.h" clipsight_ort_version REGEX "^#define ORT_API_VERSION ")
  string(REGEX REPLACE "[^0-9]" "" clipsight_ort_version "${clipsight_ort_version}")
  if(clipsight_ort_version LESS 18)
    message(WARNING "ONNX Runtime headers must be of 1.18 or newer, got 1.${clipsight_ort_version} in "
                    "${clipsight_ort_headers}")
    set(clipsight_ort_headers "")
  endif()
endif()

if(clipsight_ort_headers)
  add_library(clipsight_onnxruntime_headers INTERFACE)
  target_include_directories(clipsight_onnxruntime_headers SYSTEM INTERFACE "${clipsight_ort_headers}")
  message(STATUS "ONNX Runtime headers: ${clipsight_ort_headers} (1.${clipsight_ort_version})")
elseif(CLIPSIGHT_ONNXRUNTIME STREQUAL "ON")
  message(FATAL_ERROR "CLIPSIGHT_ONNXRUNTIME=ON, but there is no onnxruntime_c_api.h: ${clipsight_ort_help}")
else()
  message(STATUS "ONNX Runtime headers: none, so libclipsight_onnxruntime.so is left out; to have it, "
                 "${clipsight_ort_help}")
endif()
