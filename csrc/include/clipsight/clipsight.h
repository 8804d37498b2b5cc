/* An exported video network in a C program, or in any language that can call C. The C++ header is clipsight/session.h.
 *
 *   clipsight_session session;
 *   if (clipsight_open("movers.onnx", NULL, &session)) fail(clipsight_last_error());
 *   if (clipsight_run(session, inputs, 1, outputs, 3)) fail(clipsight_last_error());
 *   clipsight_close(session);
 *
 * Every function but the first three returns CLIPSIGHT_OK or CLIPSIGHT_ERROR. Nothing throws, and no argument that is
 * null, out of range or closed crashes. All functions may be called by several threads at once. */
#ifndef CLIPSIGHT_CLIPSIGHT_H
#define CLIPSIGHT_CLIPSIGHT_H

#include <stddef.h>
#include <stdint.h>

#define CLIPSIGHT_API __attribute__((visibility("default")))

/* Changes when a program that was compiled with an older header would misread a structure or a class. */
#define CLIPSIGHT_ABI_VERSION 2
#define CLIPSIGHT_MAX_RANK 8

#ifdef __cplusplus
extern "C" {
#endif

enum { CLIPSIGHT_OK = 0, CLIPSIGHT_ERROR = 1 };
enum { CLIPSIGHT_CPU = 0, CLIPSIGHT_CUDA = 1 };
enum {
  CLIPSIGHT_FLOAT32 = 0,
  CLIPSIGHT_FLOAT16 = 1,
  CLIPSIGHT_BFLOAT16 = 2,
  CLIPSIGHT_UINT8 = 3,
  CLIPSIGHT_INT64 = 4,
  CLIPSIGHT_BOOL = 5,
  CLIPSIGHT_FLOAT64 = 6
};

/* What logits are read as: a softmax over the classes (of each head, where a file has several), a sigmoid of each by
 * itself, or none: they are scores of another kind. */
enum { CLIPSIGHT_SOFTMAX = 0, CLIPSIGHT_SIGMOID = 1, CLIPSIGHT_NONE = 2 };

/* A session's number. It is never used again after clipsight_close, and 0 is never one. */
typedef uint64_t clipsight_session;

/* Start from CLIPSIGHT_OPTIONS. A null string means the default, see clipsight::Options. */
typedef struct clipsight_options {
  int abi;
  int threads;
  const char* device;
  const char* onnxruntime_library;
  const char* plugin_library;
} clipsight_options;
#define CLIPSIGHT_OPTIONS {CLIPSIGHT_ABI_VERSION, 0, NULL, NULL, NULL}

/* A contiguous tensor in memory of the caller. */
typedef struct clipsight_tensor {
  void* data;
  int dtype;        /* CLIPSIGHT_FLOAT32 ... */
  int device;       /* CLIPSIGHT_CPU or CLIPSIGHT_CUDA */
  int device_index; /* of the GPU */
  int rank;
  int64_t shape[CLIPSIGHT_MAX_RANK];
} clipsight_tensor;

/* An input or output of the file. The name lives until clipsight_close. A length of -1 is for the caller to choose;
 * `letters` then has its letter (or '?' where it follows from others in another way), else a '='. */
typedef struct clipsight_port {
  const char* name;
  int dtype;
  int rank;
  int64_t shape[CLIPSIGHT_MAX_RANK];
  char letters[CLIPSIGHT_MAX_RANK];
} clipsight_port;

typedef struct clipsight_class {
  int64_t index;
  float probability; /* the score itself where the file's logits are read as CLIPSIGHT_NONE */
  const char* label; /* null where the file has no labels; lives until clipsight_close */
} clipsight_class;

CLIPSIGHT_API int clipsight_abi_version(void);
CLIPSIGHT_API const char* clipsight_version(void);
/* Why the last call of this thread failed; it lives until the thread's next call. Empty where none has failed. */
CLIPSIGHT_API const char* clipsight_last_error(void);

/* `options` may be null. */
CLIPSIGHT_API int clipsight_open(const char* path, const clipsight_options* options, clipsight_session* session);
/* A file of a kind that its suffix does not say: "onnx", or "torchscript" or "aot", which are code. */
CLIPSIGHT_API int clipsight_open_as(const char* kind, const char* path, const clipsight_options* options,
                                    clipsight_session* session);
CLIPSIGHT_API int clipsight_close(clipsight_session session);

/* The manifest's JSON; it lives until clipsight_close. */
CLIPSIGHT_API int clipsight_manifest(clipsight_session session, const char** json);
/* Of inputs, outputs and classes; a pointer may be null where its number is not wanted. */
CLIPSIGHT_API int clipsight_counts(clipsight_session session, size_t* inputs, size_t* outputs, size_t* classes);
CLIPSIGHT_API int clipsight_input(clipsight_session session, size_t index, clipsight_port* port);
CLIPSIGHT_API int clipsight_output(clipsight_session session, size_t index, clipsight_port* port);

/* Top, left, height and width, in pixels, of the part of a source frame of this size that the maps show. */
CLIPSIGHT_API int clipsight_map_region(clipsight_session session, int64_t height, int64_t width, double region[4]);

/* Fills dtype, rank and shape (not data) of each output that these inputs will give. */
CLIPSIGHT_API int clipsight_output_shapes(clipsight_session session, const clipsight_tensor* inputs, size_t input_count,
                                          clipsight_tensor* outputs, size_t output_count);

/* Inputs and outputs in the order of clipsight_input and clipsight_output; all memory is the caller's, and after the
 * first run of a thread nothing is allocated here. */
CLIPSIGHT_API int clipsight_run(clipsight_session session, const clipsight_tensor* inputs, size_t input_count,
                                const clipsight_tensor* outputs, size_t output_count);

/* What the file's logits are read as: CLIPSIGHT_SOFTMAX ... */
CLIPSIGHT_API int clipsight_probability(clipsight_session session, int* probability);

/* The `count` most probable classes of one sample of the logits, most probable first, as the file reads them. */
CLIPSIGHT_API int clipsight_top_classes(clipsight_session session, const clipsight_tensor* logits, size_t sample,
                                        clipsight_class* classes, size_t count);

#ifdef __cplusplus
}
#endif

#endif
