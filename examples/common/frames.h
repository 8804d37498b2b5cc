/* Frames in and out for the example programs, in C that is also C++: a raw dump or a folder of PPM images is read, a
 * map is coloured and blended on a frame, and the result is written as PPM, the numbers behind it as raw bytes. */
#ifndef CLIPSIGHT_EXAMPLES_FRAMES_H
#define CLIPSIGHT_EXAMPLES_FRAMES_H

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct video {
  int frames, height, width;
  unsigned char* pixels; /* RGB, [frames, height, width, 3] */
} video;

static size_t frame_bytes(const video* v) { return (size_t)v->height * (size_t)v->width * 3; }

static int read_all(const char* path, size_t skip, void* to, size_t bytes) {
  FILE* file = fopen(path, "rb");
  int good = file && fseek(file, (long)skip, SEEK_SET) == 0 && fread(to, 1, bytes, file) == bytes;
  if (file) fclose(file);
  return good;
}

/* uint8 [T, H, W, 3], the size as "TxHxW". Returns 0 where the file is too short. */
static int read_raw(const char* path, const char* size, video* v) {
  if (sscanf(size, "%dx%dx%d", &v->frames, &v->height, &v->width) != 3) return 0;
  if (v->frames < 1 || v->height < 1 || v->width < 1) return 0;
  if (v->frames > 100000 || v->height > 32768 || v->width > 32768) return 0;
  size_t bytes = (size_t)v->frames * frame_bytes(v);
  v->pixels = (unsigned char*)malloc(bytes);
  return v->pixels && read_all(path, 0, v->pixels, bytes);
}

/* A binary PPM (P6) without comments becomes the next frame. */
static int add_ppm(const char* path, video* v) {
  int width, height, most, header;
  FILE* file = fopen(path, "rb");
  if (!file) return 0;
  int found = fscanf(file, "P6 %d %d %d", &width, &height, &most);
  header = (int)ftell(file) + 1; /* one space follows */
  fclose(file);
  if (found != 3 || most != 255 || width < 1 || height < 1 || width > 32768 || height > 32768) return 0;
  if (v->frames && (width != v->width || height != v->height)) return 0;
  v->width = width;
  v->height = height;
  unsigned char* more = (unsigned char*)realloc(v->pixels, (size_t)(v->frames + 1) * frame_bytes(v));
  if (!more) return 0;
  v->pixels = more;
  return read_all(path, (size_t)header, more + (size_t)v->frames++ * frame_bytes(v), frame_bytes(v));
}

static int is_ppm(const struct dirent* entry) {
  const char* dot = strrchr(entry->d_name, '.');
  return dot && strcmp(dot, ".ppm") == 0;
}

/* All PPM images of a folder, in the order of their names. */
static int read_folder(const char* path, video* v) {
  struct dirent** entries = NULL;
  int count = scandir(path, &entries, is_ppm, alphasort), good = count > 0, i;
  char name[4096];
  for (i = 0; i < count; ++i) {
    snprintf(name, sizeof name, "%s/%s", path, entries[i]->d_name);
    good = good && add_ppm(name, v);
    free(entries[i]);
  }
  free(entries);
  return good;
}

static int write_ppm(const char* path, const unsigned char* pixels, int height, int width) {
  size_t bytes = (size_t)height * (size_t)width * 3;
  FILE* file = fopen(path, "wb");
  int good = file && fprintf(file, "P6\n%d %d\n255\n", width, height) > 0 && fwrite(pixels, 1, bytes, file) == bytes;
  return file && fclose(file) == 0 && good;
}

/* The numbers of an output as they lie in memory, in folder/name.raw. */
static int write_raw(const char* folder, const char* name, const void* data, size_t bytes) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s.raw", folder, name);
  FILE* file = fopen(path, "wb");
  int good = file && fwrite(data, 1, bytes, file) == bytes;
  return file && fclose(file) == 0 && good;
}

/* Value of a ramp through (x[i], y[i]). */
static double ramp(double at, const double* x, const double* y, int points) {
  int i = 1;
  while (i < points - 1 && at > x[i]) ++i;
  return y[i - 1] + (y[i] - y[i - 1]) * fmin(fmax((at - x[i - 1]) / (x[i] - x[i - 1]), 0), 1);
}

/* The jet colour of a value in 0..1. */
static void jet(double value, double rgb[3]) {
  static const double rx[] = {0, 0.35, 0.66, 0.89, 1}, ry[] = {0, 0, 1, 1, 0.5};
  static const double gx[] = {0, 0.125, 0.375, 0.64, 0.91, 1}, gy[] = {0, 0, 1, 1, 0, 0};
  static const double bx[] = {0, 0.11, 0.34, 0.65, 1}, by[] = {0.5, 1, 1, 0, 0};
  rgb[0] = 255 * ramp(value, rx, ry, 5);
  rgb[1] = 255 * ramp(value, gx, gy, 6);
  rgb[2] = 255 * ramp(value, bx, by, 5);
}

/* A map [rows, columns] at a place between its voxels, which lie at whole numbers. */
static double sample(const float* map, int rows, int columns, double y, double x) {
  y = fmin(fmax(y, 0), rows - 1);
  x = fmin(fmax(x, 0), columns - 1);
  int top = (int)y, left = (int)x;
  int bottom = top + 1 < rows ? top + 1 : top, right = left + 1 < columns ? left + 1 : left;
  const float *upper = map + top * columns, *lower = map + bottom * columns;
  double above = upper[left] + (x - left) * (upper[right] - upper[left]);
  double below = lower[left] + (x - left) * (lower[right] - lower[left]);
  return above + (y - top) * (below - above);
}

/* Colours a map and blends it, half and half, with the region (top, left, height, width) of the frame that it shows. */
static void blend(unsigned char* frame, int height, int width, const float* map, int rows, int columns,
                  const double region[4]) {
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      double down = (y + 0.5 - region[0]) / region[2], across = (x + 0.5 - region[1]) / region[3], rgb[3];
      if (down < 0 || down > 1 || across < 0 || across > 1) continue;
      jet(sample(map, rows, columns, down * rows - 0.5, across * columns - 0.5), rgb);
      unsigned char* pixel = frame + ((size_t)y * (size_t)width + (size_t)x) * 3;
      for (int c = 0; c < 3; ++c) pixel[c] = (unsigned char)lrint((pixel[c] + rgb[c]) / 2);
    }
  }
}

#endif
