#!/usr/bin/env bash
# Train the weights that come with the package, as msde/shipped/README.md describes them:
# benchmarks/pretrained.sh DATA OUTPUT
# DATA holds pretrain/, moleculenet/ and qm9/. It goes on where it was interrupted. The encoders are
# trained without the molecules of the tasks that they are tested on.
set -euo pipefail
DATA=$(realpath "$1") OUTPUT=$(realpath -m "$2")
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
# The 2D encoder learns from 2D to 3D alone, the 3D encoder from all three objectives.
train() { # NAME RANKS STEPS [OVERRIDES]
    [ -e "$OUTPUT/$1/DONE" ] || OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} \
        deepspeed --num_accelerators "$2" launch/pretrain.py --data "$OUTPUT/pairs" --output "$OUTPUT/$1" \
        model.hidden_dim=300 model.schnet.num_filters=128 model.conformer.hidden_dim=32 \
        model.topology.node_dim=16 model.topology.attention_dim=16 model.topology.hidden_channels=8 \
        data.molecules_per_step=64 data.validation_fraction=0.02 \
        optim.lr=5e-4 optim.scale_encoder_3d=1 optim.scale_3d_to_2d=1 optim.schedule=cosine \
        optim.warmup_steps=200 run.validate_every=500 run.save_every=500 run.steps="$3" "${@:4}"
}
train together 2 3600
train 2d_to_3d 1 4000 loss.coefficient_contrastive=0 loss.coefficient_3d_to_2d=0
python benchmarks/join.py "$OUTPUT/2d_to_3d" "$OUTPUT/together" --output "$OUTPUT/base/best"
benchmarks/conformers.sh "$DATA/pretrain" "$OUTPUT/conformers"
benchmarks/bonds.sh "$DATA/pretrain" "$OUTPUT/bonds"
for name in base conformers bonds; do
    run=$OUTPUT/$name
    [ -d "$run/run" ] && run=$run/run
    mkdir -p "msde/shipped/$name"
    cp "$run"/best/{model.safetensors,config.json,MANIFEST.json} "msde/shipped/$name/"
done
