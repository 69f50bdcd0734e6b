#!/usr/bin/env bash
# The whole table of pretraining's worth: benchmarks/downstream_eight.sh DATA OUTPUT
# Eight groups of tasks, seven kinds of arms, five splits (benchmarks/plans/downstream_eight.json). DATA
# holds pretrain/, moleculenet/, qm9/ and md17/. The control that was pretrained on shuffled pairs is
# made first. It goes on where it was interrupted; OUTPUT/suite has the tables.
set -euo pipefail
DATA=$(realpath "$1") OUTPUT=$(realpath -m "$2")
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
files=$OUTPUT/files
mkdir -p "$files"
ln -sfn "$DATA"/{pretrain,moleculenet,qm9,md17} "$files"
benchmarks/encoders.sh "$DATA" "$OUTPUT" shuffled_2d
[ -e "$files/geometry.csv" ] ||
    python benchmarks/geometry_labels.py "$OUTPUT/tasks/pcqm" --output "$files/geometry.csv"
[ -e "$OUTPUT/qm9_500/manifest.json" ] ||
    python -m data_tools.convert "$DATA/qm9/qm9_500.db" --output "$OUTPUT/qm9_500"
[ -e "$OUTPUT/qm9_unseen/manifest.json" ] ||
    python -m data_tools.merge "$OUTPUT/qm9_500" --without "$OUTPUT/pairs" \
        --output "$OUTPUT/qm9_unseen"
[ -e "$files/qm9_500_atomisation/manifest.json" ] ||
    python benchmarks/atomisation_energies.py "$OUTPUT/qm9_unseen" --label energy_U0 \
        --output "$files/qm9_500_atomisation"
python launch/suite.py --plan benchmarks/plans/downstream_eight.json --data "$files" \
    --checkpoint pretrained=msde/shipped/base \
    --checkpoint shuffled="$OUTPUT/shuffled/2d_to_3d/best" --pretraining "$OUTPUT/pairs" \
    --output "$OUTPUT/suite" --processes 2
