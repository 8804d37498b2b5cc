#!/usr/bin/env bash
# The wheel by itself: built, installed in a fresh environment, and put to work there, away from the source tree.
#   tests/support/wheel.sh [PYTHON]
# The fresh environment borrows torch and the other dependencies, so that gigabytes need not be downloaded: from the python
# on the PATH, which also builds the wheel, or from PYTHON, which may have another release of torch (2.11 or newer).
set -euo pipefail
cd "$(dirname "$0")/../.."
lender=${1:-python}
folder=$PWD/build/wheel-test
rm -rf "$folder" && mkdir -p "$folder"

python -m pip wheel -q . --no-build-isolation --no-deps -w "$folder"
"$lender" -m venv "$folder/venv"
fresh=$folder/venv/bin/python
"$fresh" -m pip install -q --no-deps --no-index "$folder"/clipsight-*.whl
packages='import sys; print(*(p for p in sys.path if p.endswith(("site-packages", "dist-packages"))), sep="\n")'
"$lender" -c "$packages" >"$("$fresh" -c 'import site; print(site.getsitepackages()[0])')/borrowed.pth"

cp tests/support/wheel_check.py "$folder/"
cd "$folder"
python wheel_check.py write files  # by the torch that the wheel was built with
"$fresh" wheel_check.py run files
