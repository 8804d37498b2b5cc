// The kernels of kernels.h on a CUDA stream: <op>_cuda(args, workspace, stream). All pointers of the structs are device
// pointers, and so is `workspace`: the number of bytes that <op>_cuda_workspace(args) asks for, 256-byte aligned.
// Nothing is allocated and nothing waits for the device, so a call may be captured in a CUDA graph. A launch that
// fails throws std::runtime_error. Link `clipsight::kernels_cuda`, which only a build with CUDA installs.
#pragma once

#include "kernels.h"
#include "ops/back_step_cuda.h"
#include "ops/channel_reduce_cuda.h"
#include "ops/saliency_tube_cuda.h"
#include "ops/selective_relevance_cuda.h"
#include "ops/sobel_temporal_cuda.h"
#include "ops/spline_upsample_cuda.h"
