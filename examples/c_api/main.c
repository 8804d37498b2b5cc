/* Explains a video with an exported ONNX file, in C: prints the top classes, writes the heat over every frame
 * as PPM, and each output as raw numbers.
 *
 *   explain model.onnx frames/ out/                 a folder of PPM images
 *   explain model.onnx video.raw out/ 16x240x320    raw RGB bytes [T, H, W, 3]
 *
 * The file must have been exported with frames="uint8"; out/ must exist. ONNX Runtime is found as any library is
 * (LD_LIBRARY_PATH), or named by the environment variable ONNXRUNTIME. */
#include <clipsight/clipsight.h>
#include <stdio.h>
#include <stdlib.h>

#include "frames.h"

enum { MOST = 8, TOP = 5 };

static void check(int status) {
  if (status == CLIPSIGHT_OK) return;
  fprintf(stderr, "%s\n", clipsight_last_error());
  exit(1);
}

static void require(int good, const char* message) {
  if (good) return;
  fprintf(stderr, "explain: %s\n", message);
  exit(1);
}

static size_t bytes_of(const clipsight_tensor* tensor) {
  static const size_t sizes[] = {4, 2, 2, 1, 8, 1}; /* of CLIPSIGHT_FLOAT32 ... CLIPSIGHT_BOOL */
  size_t bytes = sizes[tensor->dtype];
  for (int i = 0; i < tensor->rank; ++i) bytes *= (size_t)tensor->shape[i];
  return bytes;
}

static void print_top(clipsight_session session, const clipsight_tensor* logits) {
  clipsight_class top[TOP];
  size_t count = logits->shape[1] < TOP ? (size_t)logits->shape[1] : TOP;
  check(clipsight_top_classes(session, logits, 0, top, count));
  for (size_t i = 0; i < count; ++i) {
    printf("%9.6f  %ld  %s\n", top[i].probability, (long)top[i].index, top[i].label ? top[i].label : "");
  }
}

static void write_heat(clipsight_session session, video* v, const clipsight_tensor* map, const char* out) {
  int rows = (int)map->shape[3], columns = (int)map->shape[4];
  double region[4];
  check(clipsight_map_region(session, v->height, v->width, region));
  for (int t = 0; t < v->frames; ++t) {
    char name[4096];
    unsigned char* frame = v->pixels + (size_t)t * frame_bytes(v);
    blend(frame, v->height, v->width, (const float*)map->data + (size_t)t * rows * columns, rows, columns, region);
    snprintf(name, sizeof name, "%s/heat%04d.ppm", out, t);
    require(write_ppm(name, frame, v->height, v->width), "out must be a folder that can be written to");
  }
}

/* Keeps as many frames as the network takes, evenly spaced. */
static void choose(video* v, int count) {
  require(v->frames >= count, "the video must have as many frames as the network takes");
  for (int i = 0; i < count; ++i) {
    size_t from = (size_t)((int64_t)i * v->frames / count);
    memmove(v->pixels + (size_t)i * frame_bytes(v), v->pixels + from * frame_bytes(v), frame_bytes(v));
  }
  v->frames = count;
}

int main(int argc, char** argv) {
  require(argc == 4 || argc == 5, "usage: explain model.onnx (frames/ out/ | video.raw out/ TxHxW)");
  video v = {0, 0, 0, NULL};
  require(argc == 4 ? read_folder(argv[2], &v) : read_raw(argv[2], argv[4], &v),
          "the video must be PPM images of one size or raw bytes of the size given");

  clipsight_options options = CLIPSIGHT_OPTIONS;
  options.onnxruntime_library = getenv("ONNXRUNTIME");
  clipsight_session session;
  check(clipsight_open(argv[1], &options, &session));
  size_t inputs, count;
  check(clipsight_counts(session, &inputs, &count, NULL));
  clipsight_port port;
  check(clipsight_input(session, 0, &port));
  require(inputs == 1 && port.dtype == CLIPSIGHT_UINT8 && port.shape[1] > 0 && count <= MOST,
          "the file must be one that was exported with frames=\"uint8\" and takes nothing else");
  choose(&v, (int)port.shape[1]);

  clipsight_tensor input = {v.pixels, CLIPSIGHT_UINT8, CLIPSIGHT_CPU, 0, 5, {1, v.frames, v.height, v.width, 3}};
  clipsight_tensor outputs[MOST] = {{NULL, 0, 0, 0, 0, {0}}};
  check(clipsight_output_shapes(session, &input, 1, outputs, count));
  for (size_t i = 0; i < count; ++i) {
    outputs[i].data = malloc(bytes_of(&outputs[i]));
    require(outputs[i].data != NULL, "there must be memory for the outputs");
  }
  check(clipsight_run(session, &input, 1, outputs, count));

  print_top(session, &outputs[0]);
  size_t map = 0;
  while (map < count && (outputs[map].rank != 5 || outputs[map].dtype != CLIPSIGHT_FLOAT32)) ++map;
  require(map < count, "the file must give a float32 map [N, M, T, H, W]");
  write_heat(session, &v, &outputs[map], argv[3]);

  for (size_t i = 0; i < count; ++i) {
    check(clipsight_output(session, i, &port));
    require(write_raw(argv[3], port.name, outputs[i].data, bytes_of(&outputs[i])),
            "out must be a folder that can be written to");
    free(outputs[i].data);
  }
  free(v.pixels);
  check(clipsight_close(session));
  return 0;
}
