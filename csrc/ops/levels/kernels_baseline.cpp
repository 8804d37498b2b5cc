// Four floats a vector, no flags, no intrinsics: any processor.
#define CLIPSIGHT_LEVEL baseline
#define CLIPSIGHT_WIDTH 4
#include "ops/levels/kernels_body.h"
