#!/bin/sh
# All that is measured on a GPU, in less than nine minutes: the kernels' correctness, times of ops and
# steps beside plain torch and, where there is a checkout of it, the published code.
#
#   benchmarks/gpu.sh pcqm4mv2-2k.csv results [checkout of chao1224/MoleculeSDE]
#
# benchmarks/carry.sh fills a folder with the wheels that a machine without a network needs for it.
# Each part writes a file of its own as soon as it is done; one that fails leaves its message there.
set -u
input=$1 output=$2 published=${3:+--published $3}
engine=$(python -c 'import deepspeed; print("--engine")' 2> /dev/null | tail -1)
mkdir -p "$output"
here=$(dirname "$0")
# Where there is no GPU this shows that the script runs: fewer steps, longer limits, and no model of
# a billion parameters.
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    big=xl scale=1 few= short=
else
    big=base scale=5 few="--turns 1 --steps 1" short="--repeats 1"
fi
date -u +%FT%TZ > "$output/date.txt"

part() {  # file, seconds at most, command
    file=$output/$1 limit=$2
    shift 2
    timeout "$((limit * scale))" "$@" > "$file" 2> "$file.log" && rm "$file.log" || echo "$file: failed" >&2
}

part tests.txt 85 python -m pytest -q "$here/../tests/ops" "$here/../tests/training/test_cuda_graphs.py" \
    "$here/../tests/data/test_stream.py" -k "triton or Triton or gpu or cuda"
part step-256.json 75 python "$here/step.py" --input "$input" --json $published $few
part step-1024.json 75 python "$here/step.py" --input "$input" --batch-size 1024 --turns 1 --json \
    $published $few
part step-256-graphs.json 45 python "$here/step.py" --input "$input" --turns 1 --json \
    --cuda-graphs $few
part step-1024-graphs.json 60 python "$here/step.py" --input "$input" --batch-size 1024 --turns 1 \
    --json --cuda-graphs $engine $few
part ops.json 80 python "$here/ops.py" --input "$input" $short
part kernels.json 40 python "$here/kernels.py" --input "$input" --trace "$output/step.json.gz"
part "step-$big.json" 75 python "$here/step.py" --input "$input" --preset "$big" --turns 1 --json \
    --bfloat16 --activation-checkpointing $few
cat "$output"/*.log 2> /dev/null | tail -40 >&2
ls "$output"
