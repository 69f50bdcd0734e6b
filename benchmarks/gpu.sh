#!/bin/sh
# What is measured on a GPU, in some nine minutes if no part reaches its limit: the kernels' correctness, times of steps
# beside the published code where there is a checkout of it, real runs, and ops beside plain torch.
#
#   benchmarks/gpu.sh pcqm4mv2-2k.csv results [checkout of chao1224/MoleculeSDE]
#
# benchmarks/carry.sh fills a folder with the wheels that a machine without a network needs for it.
# Each part writes a file of its own as soon as it is done; one that fails leaves its message there.
# table.md has their main figures; those of ops are in ops.json.
set -u
input=$1 output=$2 published=${3:+--published $3}
mkdir -p "$output"
here=$(dirname "$0")
# Where there is no GPU this shows that the script runs: few steps of 32 molecules, longer limits, no model of
# a billion parameters.
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    big=xl scale=1 sizes="256 1024" few= short= short_runs=
else
    big=base scale=5 sizes=32 few="--turns 1 --steps 1 --batch-size 32" short="--repeats 1" short_runs="--steps 1"
fi
date -u +%FT%TZ > "$output/date.txt"
began=$(date +%s)

part() {  # file, seconds at most, command
    file=$output/$1 limit=$2
    shift 2
    timeout "$((limit * scale))" "$@" > "$file" 2> "$file.log" && rm "$file.log" && return
    [ $? -eq 124 ] && echo "$file: stopped after $((limit * scale)) s" >> "$file.log"
    echo "$file: failed" >&2
}

# The installed package is tested, which has its tools inside, not the sources beside this folder.
part tests.txt 150 python -P -m pytest -v "$here/../tests/ops" "$here/../tests/training/test_cuda_graphs.py" \
    "$here/../tests/data/test_stream.py" -k "(triton or Triton or gpu or cuda) and not compiles_for"
part step-256.json 70 python "$here/step.py" --input "$input" --matmul-precision high --json \
    $published $few
part step-1024.json 70 python "$here/step.py" --input "$input" --batch-size 1024 --turns 1 \
    --matmul-precision high --json $published $few
for size in $sizes; do
    for run in "paper" "paper --cuda-graphs" "base --cuda-graphs"; do
        name=$(echo "$run" | sed 's/ --cuda//')
        # shellcheck disable=SC2086
        part "training-$name-$size.json" 45 python "$here/training.py" --input "$input" \
            --batch-sizes "$size" $short_runs --preset $run
    done
done
part kernels.json 30 python "$here/kernels.py" --input "$input" --trace "$output/step.json.gz"
part "step-$big.json" 90 python "$here/step.py" --input "$input" --preset "$big" --turns 1 --json \
    --matmul-precision high --bfloat16 --activation-checkpointing $few
part ops.json 50 python "$here/ops.py" --input "$input" $short
# Compiling takes minutes of its own. Some versions of torch lose gradients where they compile.
if [ $(($(date +%s) - began)) -lt $((380 * scale)) ]; then
    part compiled.txt 60 python -P -m pytest \
        "$here/../tests/training/test_compilation.py" -k noise_and_terms -m slow
    part training-paper-compiled.json 135 python "$here/training.py" --input "$input" --cuda-graphs \
        --batch-sizes "${sizes%% *}" $short_runs --overrides run.compile=true
else
    echo "skipped: the other parts took too long" | tee "$output/compiled.txt" >&2
fi
python "$here/gpu_table.py" "$output" | tee "$output/table.md"
cat "$output"/*.log 2> /dev/null | tail -40 >&2
ls "$output"
