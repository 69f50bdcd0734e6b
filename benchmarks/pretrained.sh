#!/usr/bin/env bash
# Train the weights that come with the package, as msde/shipped/README.md describes them:
# benchmarks/pretrained.sh DATA OUTPUT
# DATA holds pretrain/, moleculenet/ and qm9/. It goes on where it was interrupted. At the end the new
# weights replace those in msde/shipped/; `git checkout msde/shipped` brings the former back.
set -euo pipefail
DATA=$(realpath "$1") OUTPUT=$(realpath -m "$2")
cd "$(dirname "$0")/.."
benchmarks/encoders.sh "$DATA" "$OUTPUT"
benchmarks/conformers.sh "$DATA/pretrain" "$OUTPUT/conformers"
benchmarks/bonds.sh "$DATA/pretrain" "$OUTPUT/bonds"
for name in base conformers bonds; do
    run=$OUTPUT/$name
    [ -d "$run/run" ] && run=$run/run
    mkdir -p "msde/shipped/$name"
    cp "$run"/best/{model.safetensors,config.json,MANIFEST.json} "msde/shipped/$name/"
done
