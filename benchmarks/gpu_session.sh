#!/usr/bin/env bash
# Everything that needs a GPU in one go, by value: build, correctness of every op, benchmark, compute-sanitizer.
#   benchmarks/gpu_session.sh OUTPUT_FOLDER
# It ends within 410 s (CLIPSIGHT_GPU_SECONDS), and what a step has found is in the folder as soon as it is found:
# summary.txt, a log of each step, and bench_gpu.json, to be kept as benchmarks/results/gpu_DEVICE_DATE.json. A step
# must end when its share of the time is over; what it leaves over goes to the next one. The exit status is that of the
# first step that failed; later ones run all the same.
#   PYTHON                              has a CUDA torch (2.11 or newer), pybind11, cmake, ninja, scipy and pytest
#   CLIPSIGHT_GPU_ARCH                  architectures to compile for: 90 (Hopper); native asks the device
#   CLIPSIGHT_ONNXRUNTIME_INCLUDE_DIR   ONNX Runtime's headers; without them its ops are left out, nothing is fetched
#   CLIPSIGHT_COMMIT                    what is measured, where there is no git to tell
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?usage: $0 OUTPUT_FOLDER}" && cd "$1" && pwd)
export PYTHON=${PYTHON:-python3} BUILD=${CLIPSIGHT_GPU_BUILD:-build/gpu} PYTHONPATH=$PWD/python
export PYTHONUNBUFFERED=1 CLIPSIGHT_REQUIRE_CUDA=1
PATH=$PATH:$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):/usr/local/cuda/bin  # cmake, nvcc
budget=$((${CLIPSIGHT_GPU_SECONDS:-410} * 1000))
status=0 running=

now() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }  # milliseconds
seconds() { printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)); }
say() { echo "$*" | tee -a "$out/summary.txt"; }

step() {  # step NAME PERCENT COMMAND...: runs it until PERCENT of the whole time is over
  local name=$1 begin limit code=0 took
  begin=$(now) limit=$((start + budget * $2 / 100 - $(now)))
  shift 2
  [ $limit -ge 100 ] || limit=100
  say "$name: begins, has $(seconds $limit) s"
  timeout -k 1 "$(seconds $limit)" bash -c '"$@"' - "$@" >"$out/$name.log" 2>&1 &  # bash: a step may be a function
  running=$!
  wait $running || code=$?
  took=$(($(now) - begin)) running=
  say "$name: exit $code after $(seconds $took) s$([ $took -lt $limit ] || echo ', cut off')"
  [ $code -eq 0 ] || tail -n 25 "$out/$name.log"
  [ $status -ne 0 ] || status=$code
  return $code
}
stopped() {
  [ -z "$running" ] || kill "$running"
  say "stopped from outside after $(seconds $(($(now) - start))) s"
  exit 143
}
trap stopped TERM INT

device() {
  nvidia-smi
  "$PYTHON" -c 'import torch; print(torch.__version__, torch.version.cuda, torch.ones(1, device="cuda") + 1)'
}
build() {
  cmake -S . -B "$BUILD" -G Ninja -DCLIPSIGHT_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="${CLIPSIGHT_GPU_ARCH:-90}" \
    -DCLIPSIGHT_ONNXRUNTIME="$([ -n "${CLIPSIGHT_ONNXRUNTIME_INCLUDE_DIR:-}" ] && echo ON || echo OFF)" \
    -DPython_EXECUTABLE="$("$PYTHON" -c 'import sys; print(sys.executable)')" \
    -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" \
    && cmake --build "$BUILD" && cmake --install "$BUILD" --prefix python
}
sanitize() {  # our kernels alone, in a test that launches each of them on small volumes
  compute-sanitizer --tool "$1" --kernel-name kns=clipsight --report-api-errors no --error-exitcode 9 \
    "$PYTHON" -m pytest -q -p no:cacheprovider $(grep -rl 'def test_every_kernel' tests) -k test_every_kernel
}
export -f device build sanitize

start=$(now)
rm -f "$out/summary.txt"
gpu=$(timeout 10 nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>&1 | head -n 1)
say "$(date -u +%FT%TZ), $gpu"
step device 8 device
if step build 32 build; then
  step tests 58 "$PYTHON" -m benchmarks.gpu_tests
  step bench 80 "$PYTHON" -m benchmarks.bench_gpu --json "$out/bench_gpu.json"
  if command -v compute-sanitizer >/dev/null; then
    step memcheck 90 sanitize memcheck
    step racecheck 100 sanitize racecheck
  else
    say "memcheck, racecheck: skipped, compute-sanitizer is not on the PATH"
  fi
else
  say "tests, bench, memcheck, racecheck: skipped, they need the build"
fi
exit $status
