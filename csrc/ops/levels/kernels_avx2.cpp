// Only this file has the flags of its level (CMakeLists.txt).
#define CLIPSIGHT_LEVEL avx2
#define CLIPSIGHT_WIDTH 8
#include "ops/levels/kernels_body.h"
