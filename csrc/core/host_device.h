// Marks the per-element mathematics that CPU and CUDA share: it stands once, so the two cannot drift apart.
#pragma once

#if defined(__CUDACC__)
#define CLIPSIGHT_HD __host__ __device__
#else
#define CLIPSIGHT_HD
#endif
