#!/usr/bin/env bash
# libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer on the session's readers and checks, for so many seconds,
# and ThreadSanitizer on kernels and session. `make fuzz`, or tests/fuzz/run.sh [SECONDS] with the .venv's bin on the PATH.
# The corpus starts with the manifests of tests/support/hostile_manifests.py and stays in build/fuzz.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-600} build=$PWD/build/fuzz

configure() {  # FOLDER SANITIZERS [OPTIONS]: the session needs neither CUDA nor a runtime to be tested
  cmake -S . -B "$build/$1" -G Ninja -DCLIPSIGHT_SANITIZE="$2" -DCLIPSIGHT_ONNXRUNTIME=OFF "${@:3}" \
    -DPython_EXECUTABLE="$(command -v python)" -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" >/dev/null
}

mkdir -p "$build/corpus"
PYTHONPATH=tests/support python - "$build/corpus" <<'P'
import random
import sys
from pathlib import Path

from hostile_manifests import cases, shells

folder = Path(sys.argv[1])
tensors = random.Random(0).randbytes  # 48 bytes of them
for i, (text, _) in enumerate(cases().values()):
    if len(text) < 20_000:
        for mode in (0, 1):
            (folder / f"case{i}_{mode}").write_bytes(bytes([mode]) + tensors(48) + text)
(folder.parent / "manifest.onnx").write_bytes(shells()["an entry"][0])
for i, (data, _) in enumerate(shells().values()):
    if len(data) < 20_000:
        (folder / f"shell{i}").write_bytes(b"\x02" + tensors(48) + data)
for i in range(100):
    (folder / f"tensors{i}").write_bytes(b"\x03" + tensors(48))
P
configure threads thread
cmake --build "$build/threads" --target threads
"$build/threads/tests/fuzz/threads" "$build/manifest.onnx"

clang=$(command -v clang++ || compgen -c | grep -E '^clang\+\+-[0-9]+$' | sort -V | tail -n 1 || true)
if [ -z "$clang" ] || ! echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' |
  "$clang" -fsanitize=fuzzer,address -x c++ - -o "$build/probe" 2>/dev/null; then
  echo "fuzz: skipped, a clang++ with libFuzzer is not installed (Debian: clang-19 and libclang-rt-19-dev)"
  exit 0
fi
configure session fuzzer-no-link,address,undefined -DCMAKE_CXX_COMPILER="$clang" -DCMAKE_CXX_FLAGS=-D_GLIBCXX_ASSERTIONS
cmake --build "$build/session" --target fuzz_session
CLIPSIGHT_MANIFEST=$build/manifest.onnx "$build/session/tests/fuzz/fuzz_session" -max_total_time="$seconds" -max_len=8000 -timeout=10 -rss_limit_mb=2048 \
  -malloc_limit_mb=512 -dict=tests/fuzz/dictionary -artifact_prefix="$build/" -print_final_stats=1 "$build/corpus" \
  >"$build/session.log" 2>&1 || { tail -n 60 "$build/session.log"; exit 1; }
grep -hE "^fuzz: |number_of_executed_units|new_units_added|peak_rss" "$build/session.log"
