// The CPU kernels of Clipsight for any program: no framework, plain pointers, float32 unless a field says otherwise.
//
// Each op is one function <op>_cpu(args, parallel, level) and one struct <Op>Args, both in ops/<op>.h with the formula:
//
//   channel_reduce       features, class weights            -> cam
//   back_step            activations, kernels, selection -> edges to the inputs, and their counts
//   spline_upsample      volumes                            -> volumes at another size
//   sobel_temporal       volumes                            -> their derivative in time
//   selective_relevance  volumes                            -> what of them moves, and its share
//   saliency_tube        cam                                -> normalised map at the clip's size
//   selective_tube       cam                                -> that, what of it moves, and its share
//
// The caller owns all memory that the structs point to and the kernels check none of it: sizes are at least 1, arrays
// contiguous and as long as the comment of their field says. Inputs are not written, outputs do not overlap.
//
// Threads: a kernel runs on the Parallel that it is given. `Serial` is the calling thread; a program with a thread pool
// derives its own class and gets the same bits. Scratch memory stays with the thread that ran, so nothing is allocated
// from the second call of a shape on. All functions may be called from several threads at one time.
//
// Link `clipsight::kernels` (CMake) or libclipsight_kernels.a. kernels_cuda.h has the same ops on a CUDA stream.
#pragma once

#include "core/parallel.h"
#include "core/simd_level.h"
#include "core/types.h"
#include "ops/back_step.h"
#include "ops/channel_reduce.h"
#include "ops/saliency_tube.h"
#include "ops/selective_relevance.h"
#include "ops/sobel_temporal.h"
#include "ops/spline_upsample.h"
