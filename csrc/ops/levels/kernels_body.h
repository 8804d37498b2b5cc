// The kernels of one SIMD level. CLIPSIGHT_LEVEL names the level's namespace, CLIPSIGHT_WIDTH its floats a vector.
// See core/simd.h for why nothing of the standard library is used in here.
#include <stddef.h>
#include <stdint.h>
#if CLIPSIGHT_WIDTH > 4
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)  // GCC 12's own AVX-512 header warns wherever it is inlined
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

#include "ops/levels/kernels.h"

#define CLIPSIGHT_PASTE(a, b) a##b
#define CLIPSIGHT_TABLE(level) CLIPSIGHT_PASTE(kernels_, level)

namespace clipsight {
namespace CLIPSIGHT_LEVEL {
namespace {

#include "core/simd.h"
#include "ops/back_step_body.h"
#include "ops/channel_reduce_body.h"
#include "ops/convert_body.h"
#include "ops/selective_relevance_body.h"
#include "ops/spline_rows_body.h"

}  // namespace
}  // namespace CLIPSIGHT_LEVEL

const Kernels CLIPSIGHT_TABLE(CLIPSIGHT_LEVEL) = {
    CLIPSIGHT_LEVEL::kWidth,
    CLIPSIGHT_LEVEL::reduce,
    CLIPSIGHT_LEVEL::frame_coefficients,
    CLIPSIGHT_LEVEL::widen_range,
    CLIPSIGHT_LEVEL::write,
    CLIPSIGHT_LEVEL::sum_of_abs,
    CLIPSIGHT_LEVEL::sobel_row,
    CLIPSIGHT_LEVEL::row_moments,
    CLIPSIGHT_LEVEL::row_range,
    CLIPSIGHT_LEVEL::select_row,
    CLIPSIGHT_LEVEL::to_float32,
    CLIPSIGHT_LEVEL::to_float16,
    CLIPSIGHT_LEVEL::back_step,
};

}  // namespace clipsight
