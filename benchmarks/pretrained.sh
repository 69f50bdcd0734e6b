#!/usr/bin/env bash
# Train the preset `base` as it comes with the package, without the molecules of the tasks that it is
# tested on: benchmarks/pretrained.sh DATA OUTPUT [STEPS]
# DATA holds pretrain/, moleculenet/ and qm9/. It goes on where it was interrupted.
set -euo pipefail
DATA=$1 OUTPUT=$2 STEPS=${3:-6000}
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
convert() { # INPUT OUTPUT [OPTIONS]
    [ -e "$2/manifest.json" ] || python -m data_tools.convert "$1" --output "$2" "${@:3}"
}
tasks=()
for file in "$DATA"/moleculenet/*; do
    name=$(basename "${file%%.csv*}")
    convert "$file" "$OUTPUT/tasks/$name" --conformers 0
    tasks+=(--without "$OUTPUT/tasks/$name")
done
convert "$DATA/qm9/micro_qm9.csv" "$OUTPUT/tasks/qm9" --conformers 0
convert "$DATA/pretrain/pcqm4mv2-2k.csv" "$OUTPUT/tasks/pcqm"
tasks+=(--without "$OUTPUT/tasks/qm9" --without "$OUTPUT/tasks/pcqm")
convert "$DATA/pretrain/dft8k.sdf.gz" "$OUTPUT/dft8k"
convert "$DATA/pretrain/gdb7.sdf.gz" "$OUTPUT/gdb7"
[ -e "$OUTPUT/pairs/manifest.json" ] ||
    python -m data_tools.merge "$OUTPUT/dft8k" "$OUTPUT/gdb7" "${tasks[@]}" \
        --labels union --skip-duplicates --output "$OUTPUT/pairs"
