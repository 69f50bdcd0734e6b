#!/usr/bin/env bash
# Train the preset `bonds` on three sets of molecules, with and without hydrogens, 10 % of the
# scaffolds held out, and compare with rules: benchmarks/bonds.sh DATA OUTPUT [STEPS [LIMIT]]
# DATA holds pcqm4mv2-2k.csv, dft8k.sdf.gz and gdb7.sdf.gz. It goes on where it was interrupted.
# LIMIT is the number of held-out molecules of each set to compare on.
# The rules of Open Babel need openbabel-wheel (msde[evaluate]).
set -euo pipefail
DATA=$(realpath "$1") OUTPUT=$(realpath -m "$2") STEPS=${3:-8500} LIMIT=${4:-150}
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
split() { # INPUT... OUTPUT: the same scaffolds are held out of every data set
    local output=${*: -1}
    [ -e "$output/test/manifest.json" ] && return
    rm -rf "$output"
    python -m data_tools.split "${@:1:$#-1}" --output "$output" --fraction 0.1
}
for hydrogens in full heavy; do
    keep=$([ "$hydrogens" = full ] && echo --keep-hydrogens || echo --no-keep-hydrogens)
    sets=()
    for name in pcqm4mv2-2k.csv dft8k.sdf.gz gdb7.sdf.gz; do
        set=$OUTPUT/$hydrogens/$name
        [ -e "$set/manifest.json" ] || python -m data_tools.convert "$DATA/$name" --output "$set" "$keep"
        sets+=("$set")
    done
    split "${sets[@]}" "$OUTPUT/parts/$hydrogens"
done
OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} deepspeed --num_accelerators 1 launch/pretrain.py --preset bonds \
    --data "$OUTPUT/parts/full/train" --data "$OUTPUT/parts/heavy/train" --output "$OUTPUT/run" \
    data.molecules_per_step=32 run.steps="$STEPS" run.validate_every=500 run.save_every=500 \
    model.topology.hidden_types=0.5
for name in pcqm4mv2-2k.csv dft8k.sdf.gz; do
    split "$OUTPUT/full/$name" "$OUTPUT/held/$name"
    python launch/evaluate_samples.py bonds --checkpoint "$OUTPUT/run" --limit "$LIMIT" --types \
        --references "$OUTPUT/held/$name/test" --output "$OUTPUT/bonds-$name.json"
done
