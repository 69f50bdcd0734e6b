#!/usr/bin/env bash
# Pretrain the encoders that come with the package:
# benchmarks/encoders.sh DATA OUTPUT [shuffled_2d|shuffled_3d]
# DATA holds pretrain/, moleculenet/ and qm9/; the molecules of these tasks are left out. The weights
# are OUTPUT/base/best. With `shuffled_2d` it trains OUTPUT/shuffled/2d_to_3d/best instead, with
# `shuffled_3d` OUTPUT/shuffled/together/best: encoders for which each molecule has the geometry of
# another one of its size, the controls for what pairs are worth. It goes on where it was interrupted.
set -euo pipefail
DATA=$(realpath "$1") OUTPUT=$(realpath -m "$2") KIND=${3:-}
case $KIND in
    "" | shuffled_2d | shuffled_3d) ;;
    *) echo "encoders.sh: $KIND is neither shuffled_2d nor shuffled_3d" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
convert() { # INPUT OUTPUT [OPTIONS]
    [ -e "$2/manifest.json" ] || python -m data_tools.convert "$1" --output "$2" "${@:3}"
}
tasks=()
for name in bbbp cep clintox esol freesolv hiv malaria muv sider tox21 toxcast; do
    files=("$DATA/moleculenet/$name".csv*)
    [ -e "${files[0]}" ] || { echo "encoders.sh: there is no ${files[0]}" >&2; exit 2; }
    convert "${files[0]}" "$OUTPUT/tasks/$name" --conformers 0
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
train() { # FOLDER RANKS STEPS [OVERRIDES]; FOLDER has the pairs
    [ -e "$1/DONE" ] || OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} \
        deepspeed --num_accelerators "$2" launch/pretrain.py --data "${1%/*}/pairs" --output "$1" \
        model.hidden_dim=300 model.schnet.num_filters=128 model.conformer.hidden_dim=32 \
        model.topology.node_dim=16 model.topology.attention_dim=16 model.topology.hidden_channels=8 \
        data.molecules_per_step=64 data.validation_fraction=0.02 \
        optim.lr=5e-4 optim.scale_encoder_3d=1 optim.scale_3d_to_2d=1 optim.schedule=cosine \
        optim.warmup_steps=200 run.validate_every=500 run.save_every=500 run.steps="$3" "${@:4}"
}
# The 2D encoder learns from 2D to 3D alone, the 3D encoder from all three objectives.
train_2d() { # FOLDER
    train "$1/2d_to_3d" 1 4000 loss.coefficient_contrastive=0 loss.coefficient_3d_to_2d=0
}
train_3d() { # FOLDER
    train "$1/together" 2 3600
}
if [ -n "$KIND" ]; then
    [ -e "$OUTPUT/shuffled/pairs/manifest.json" ] ||
        python benchmarks/shuffled_pairs.py "$OUTPUT/pairs" --output "$OUTPUT/shuffled/pairs"
    "train_${KIND#shuffled_}" "$OUTPUT/shuffled"
    exit
fi
train_3d "$OUTPUT"
train_2d "$OUTPUT"
python benchmarks/join.py "$OUTPUT/2d_to_3d" "$OUTPUT/together" --output "$OUTPUT/base/best"
