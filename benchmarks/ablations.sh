#!/usr/bin/env bash
# Pretrain a network of width 300 for 1,000 steps of 64 with one thing changed at a time, and fine-tune
# each on two properties: benchmarks/ablations.sh DATA PRETRAINED OUTPUT
# DATA is the folder of benchmarks/pretrained.sh, PRETRAINED its OUTPUT. It takes two hours on 2 cores,
# and goes on where it was interrupted.
set -euo pipefail
DATA=$(realpath "$1") SHARDS=$(realpath "$2") OUTPUT=$(realpath -m "$3")
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$OUTPUT"
[ -e "$OUTPUT/shuffled-pairs/manifest.json" ] ||
    python benchmarks/shuffled_pairs.py "$SHARDS/pairs" --output "$OUTPUT/shuffled-pairs"
checkpoints=()
train() { # NAME SHARDS [OVERRIDES]
    [ -e "$OUTPUT/$1/DONE" ] || deepspeed --num_accelerators 1 launch/pretrain.py \
        --data "$2" --output "$OUTPUT/$1" \
        model.hidden_dim=300 model.schnet.num_filters=128 model.conformer.hidden_dim=32 \
        model.topology.node_dim=16 model.topology.attention_dim=16 model.topology.hidden_channels=8 \
        data.molecules_per_step=64 data.validation_fraction=0.02 \
        optim.lr=5e-4 optim.scale_encoder_3d=1 optim.scale_3d_to_2d=1 optim.schedule=cosine \
        optim.warmup_steps=100 run.steps=1000 run.validate_every=500 run.save_every=1000 "${@:3}"
    checkpoints+=(--checkpoint "$1=$OUTPUT/$1/best")
}
train all "$SHARDS/pairs"
train shuffled "$OUTPUT/shuffled-pairs"
train contrastive "$SHARDS/pairs" loss.coefficient_2d_to_3d=0 loss.coefficient_3d_to_2d=0
train 2d_to_3d "$SHARDS/pairs" loss.coefficient_contrastive=0 loss.coefficient_3d_to_2d=0
train 3d_to_2d "$SHARDS/pairs" loss.coefficient_contrastive=0 loss.coefficient_2d_to_3d=0
train paper "$SHARDS/pairs" --preset paper
train vp "$SHARDS/pairs" model.conformer.sde.kind=VP model.topology.sde.kind=VP
train displacements "$SHARDS/pairs" loss.coefficient_displacements=1
train displacements_alone "$SHARDS/pairs" loss.coefficient_displacements=1 \
    loss.coefficient_contrastive=0 loss.coefficient_2d_to_3d=0 loss.coefficient_3d_to_2d=0
python launch/suite.py --plan benchmarks/plans/ablations.json --data "$DATA" --output "$OUTPUT/suite" \
    "${checkpoints[@]}" --pretraining "$SHARDS/pairs" --processes 2
