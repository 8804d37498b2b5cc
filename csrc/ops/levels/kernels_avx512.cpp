// Only this file has the flags of its level (CMakeLists.txt).
#define CLIPSIGHT_LEVEL avx512
#define CLIPSIGHT_WIDTH 16
#include "ops/levels/kernels_body.h"
