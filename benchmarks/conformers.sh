#!/usr/bin/env bash
# Train the preset `conformers` on three sets of molecules, 5 % of the scaffolds held out, and compare
# its samples with RDKit's: benchmarks/conformers.sh DATA OUTPUT [STEPS [LIMIT]]
# DATA holds pcqm4mv2-2k.csv, dft8k.sdf.gz and gdb7.sdf.gz. It goes on where it was interrupted.
# LIMIT is the number of held-out molecules to compare on; all are 718.
set -euo pipefail
DATA=$(realpath "$1") OUTPUT=$(realpath -m "$2") STEPS=${3:-12000} LIMIT=${4:-718}
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
mkdir -p "$OUTPUT"
for name in pcqm4mv2-2k.csv dft8k.sdf.gz gdb7.sdf.gz; do
    [ -e "$OUTPUT/$name/manifest.json" ] || python -m data_tools.convert "$DATA/$name" --output "$OUTPUT/$name"
done
if [ ! -e "$OUTPUT/parts/test/manifest.json" ]; then
    rm -rf "$OUTPUT/parts"
    python -m data_tools.split "$OUTPUT/pcqm4mv2-2k.csv" "$OUTPUT/dft8k.sdf.gz" "$OUTPUT/gdb7.sdf.gz" \
        --output "$OUTPUT/parts" --fraction 0.05
fi
OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} deepspeed --num_accelerators 1 launch/pretrain.py --preset conformers \
    --data "$OUTPUT/parts/train" --output "$OUTPUT/run" \
    data.molecules_per_step=64 run.steps="$STEPS" run.validate_every=500 run.save_every=500
python launch/evaluate_samples.py --checkpoint "$OUTPUT/run" --references "$OUTPUT/parts/test" \
    --limit "$LIMIT" --counts 1 10 --output "$OUTPUT/conformers.json"
