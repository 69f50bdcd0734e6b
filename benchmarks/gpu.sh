#!/bin/sh
# All that is measured on a GPU, in less than nine minutes: the kernels' correctness, times of ops and
# steps beside plain torch and, where there is a checkout of it, the published code.
#
#   benchmarks/gpu.sh pcqm4mv2-2k.csv results [checkout of chao1224/MoleculeSDE]
#
# Each part writes a file of its own as soon as it is done; one that fails leaves its message there.
set -u
input=$1 output=$2 published=${3:+--published $3}
engine=$(python -c 'import deepspeed; print("--engine")' 2> /dev/null | tail -1)
mkdir -p "$output"
here=$(dirname "$0")
date -u +%FT%TZ > "$output/date.txt"

part() {  # file, seconds at most, command
    file=$output/$1 limit=$2
    shift 2
    timeout "$limit" "$@" > "$file" 2> "$file.log" && rm "$file.log" || echo "$file: failed" >&2
}

part tests.txt 85 python -m pytest -q "$here/../tests/test_ops.py" "$here/../tests/test_replay.py" \
    "$here/../tests/test_stream.py" \
    -k "triton or Triton or gpu or cuda"
part step-256.json 75 python "$here/step.py" --input "$input" --json $published
part step-1024.json 75 python "$here/step.py" --input "$input" --batch-size 1024 --turns 1 --json $published
part step-256-graphs.json 45 python "$here/step.py" --input "$input" --turns 1 --json --cuda-graphs
part step-1024-graphs.json 60 python "$here/step.py" --input "$input" --batch-size 1024 --turns 1 \
    --json --cuda-graphs $engine
part ops.json 80 python "$here/ops.py" --input "$input"
part kernels.json 40 python "$here/kernels.py" --input "$input" --trace "$output/step.json.gz"
# A billion parameters do not fit where there is no GPU: there this shows that the script runs.
big=$(python -c "import torch; print('xl' if torch.cuda.is_available() else 'base')")
part "step-$big.json" 75 python "$here/step.py" --input "$input" --preset "$big" --turns 1 --json \
    --bfloat16 --activation-checkpointing
cat "$output"/*.log 2> /dev/null | tail -40 >&2
ls "$output"
