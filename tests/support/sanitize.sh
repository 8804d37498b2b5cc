#!/usr/bin/env bash
# Builds the host libraries with AddressSanitizer and UndefinedBehaviorSanitizer, and runs the tests that reach their C++.
# `make sanitize`, or tests/support/sanitize.sh with the .venv's bin on the PATH. PYTEST_ARGS are passed on, MARKS
# chooses the tests: the quick ones by default.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$PWD/build/sanitize
package=$build/python

cmake -S . -B $build -G Ninja -DCLIPSIGHT_SANITIZE=address,undefined -DPython_EXECUTABLE="$(command -v python)" \
  -Dpybind11_DIR="$(python -m pybind11 --cmakedir)"
cmake --build $build
rm -rf $package && mkdir -p $package
cp -r python/clipsight $package/  # without what `make dev` put there
rm -rf $package/clipsight/{*.so,*.a,include,lib,share}
cmake --install $build --prefix $package >/dev/null

# The interpreter is not instrumented: the runtime has to be there before it starts, and libstdc++ before the runtime looks
# for __cxa_throw. Python frees little at exit, and torch nothing, so a search for leaks would only list theirs.
export PYTHONPATH=$package PYTHONMALLOC=malloc
export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
runtime="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libstdc++.so)"
[[ $runtime == /* ]] || { echo "sanitize: c++ must be a GCC with libasan, got $(c++ --version | head -n 1)" >&2; exit 1; }

# The sanitizer must be able to find something: both an instrumented library and a watched heap.
for library in $package/clipsight/*.so; do
  nm -D "$library" | grep __asan_init >/dev/null || { echo "sanitize: $library is not instrumented" >&2; exit 1; }
done
overrun='import ctypes; ctypes.memset(ctypes.create_string_buffer(64), 0, 128)'
if LD_PRELOAD=$runtime python -c "$overrun" 2>$build/overrun.log || ! grep -q heap-buffer-overflow $build/overrun.log; then
  echo "sanitize: a write past the end of the heap was not found, see $build/overrun.log" >&2
  exit 1
fi

# The programs that the tests build are instrumented as well; one that counts calls of malloc cannot be.
export CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all"
export CXXFLAGS=$CFLAGS
LD_PRELOAD=$runtime python -m pytest -p no:cacheprovider -q -n "${WORKERS:-2}" --dist worksteal \
  -m "${MARKS:-not large and not full}" ${PYTEST_ARGS:-} tests/kernels tests/session \
  --deselect tests/session/test_session_cpp.py::test_later_runs_allocate_nothing_of_ours
