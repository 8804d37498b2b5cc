#!/usr/bin/env bash
# Everything that needs a GPU, in one go: build, tests, benchmark, compute-sanitizer.
#   benchmarks/gpu_session.sh OUTPUT_FOLDER
# PYTHON names an interpreter that has a CUDA torch (2.11 or newer), pybind11, cmake, ninja, scipy and pytest. Logs and JSON
# land in the folder; the exit status is that of the first step that failed, later steps run all the same.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?usage: $0 OUTPUT_FOLDER}" && cd "$1" && pwd)
python=${PYTHON:-python3}
arch=${CLIPSIGHT_GPU_ARCH:-native}
build=${CLIPSIGHT_GPU_BUILD:-build/gpu}
status=0
export PYTHONPATH=python CLIPSIGHT_REQUIRE_CUDA=1

step() {  # step NAME COMMAND...: runs it, keeps the log and the first failure
  local name=$1 begin=$SECONDS code=0
  shift
  "$@" >"$out/$name.log" 2>&1 || code=$?
  echo "$name: exit $code, $((SECONDS - begin)) s"
  if [ $code -ne 0 ]; then tail -n 25 "$out/$name.log"; [ $status -ne 0 ] || status=$code; fi
  return $code
}

build() {
  cmake -S . -B "$build" -G Ninja -DCLIPSIGHT_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$arch" \
    -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
    && cmake --build "$build" && cmake --install "$build" --prefix python
}

nvidia-smi >"$out/nvidia-smi.log" 2>&1
step build build || exit $status
step tests "$python" -m pytest -q -m gpu --continue-on-collection-errors
step bench "$python" -m benchmarks.bench_gpu --json "$out/bench_gpu.json"
if command -v compute-sanitizer >/dev/null; then
  few="channel_reduce or spline_upsample or sobel_and or bad_map or out_also or nan_passes or cuda_keeps"  # small sizes
  for tool in ${CLIPSIGHT_SANITIZERS:-memcheck racecheck}; do
    step "$tool" timeout 150 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" \
      -m pytest -q tests/test_gpu.py tests/test_back_step.py -k "$few"
  done
fi
cat "$out/bench_gpu.json" 2>/dev/null
exit $status
