#!/usr/bin/env bash
# Fill a folder with what a GPU machine without a network lacks, beside torch 2.11 and Triton 3.6:
#
#   benchmarks/carry.sh carried
#
# Wheels for Python 3.12 on x86-64 Linux, and this package as a wheel without its weights. They have to stay
# under 64 MiB.
# There: pip install --no-index --no-deps --target carried/site carried/*.whl
#        PYTHONPATH=carried/site benchmarks/gpu.sh pcqm4mv2-2k.csv results
set -euo pipefail
folder=$(realpath -m "$1")
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
mkdir -p "$folder"
# rdkit and lmdb read the molecules, tensorboard writes curves, pytest runs the tests of ops; the rest is what
# deepspeed imports. The interpreter of Triton 3.6 fails with NumPy 2.4.
wheels="rdkit lmdb numpy<2.4 safetensors tensorboard protobuf tqdm hjson msgpack packaging psutil py-cpuinfo einops
    pydantic pydantic-core annotated-types typing-extensions typing-inspection pytest pluggy iniconfig"
# shellcheck disable=SC2086
python -m pip download -q --no-deps --dest "$folder" --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --only-binary :all: $wheels
version=$(python -c 'import importlib.metadata as m; print(m.version("deepspeed"))')
DS_BUILD_OPS=0 python -m pip wheel -q --no-deps --no-build-isolation --wheel-dir "$folder" \
    "deepspeed==$version"
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
git archive HEAD | tar -x -C "$source" --exclude='*.safetensors'
python -m pip wheel -q --no-deps --no-build-isolation --wheel-dir "$folder" "$source"
bytes=$(cat "$folder"/*.whl | wc -c)
echo "$(ls "$folder"/*.whl | wc -l) wheels, $((bytes >> 20)) MiB"
if [ "$bytes" -ge $((64 << 20)) ]; then
    echo "more than 64 MiB: leave a wheel out that the GPU machine has" >&2
    exit 1
fi
