"""Model cards: README.md beside weights, with the header that the Hugging Face hub reads.

A card states what is known and nothing else. It is made to be edited, so MANIFEST has no hash of
it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from msde.config.schema import Config, ModelConfig
from msde.data.mixture import Mixture
from msde.files import MANIFEST, MODEL, markdown_table, write_text

NAME = "README.md"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of BatchNorm: not trained
FILES = {
    MODEL: "the weights",
    "config.json": "the network and the settings that it was trained with",
    MANIFEST: "sizes and hashes, checked whenever a file is read",
}
TEXT = """---
library_name: msde
pipeline_tag: graph-ml
tags:
- chemistry
- molecules
- {tag}
- safetensors
---

# {title}

{summary}

## Files

{files}

## Network

{networks}

## Training

{origin}

The licence of the data is not recorded here, so this card names no licence of the weights.

## Use

With the Python package `msde`, where `DIR` is this folder:

{use}
"""
PRETRAINED = """```python
import msde

model = msde.load("DIR")
h = model.embed(["CCO", "c1ccccc1"])  # (2, width), of the topology; view="3d" of the geometry
```

`model.conformers` and `model.bonds` sample, `msde finetune --checkpoint DIR` trains on labels."""


def write_pretrained_card(
    folder: Path, state: Mapping[str, Tensor], config: Config, origin: Sequence[str] = ()
) -> None:
    """Write the card of a joint model.

    Args:
        origin: what is known of the training, a sentence a line.
    """
    model, loss = config.model, config.loss
    parts = {
        "encoder_2d": f"GIN, {_sizes(model.gin, 'num_layers')}",
        "encoder_3d": _encoder_3d(model),
        "score_2d_to_3d": f"positions given the topology, `{model.conformer.edges}`, "
        f"{_sizes(model.conformer, 'hidden_dim', 'num_blocks')}, {model.conformer.sde.kind}",
        "score_3d_to_2d": f"bonds given the geometry, `{model.topology.bonds}`, "
        f"{_sizes(model.topology, 'node_dim', 'num_layers')}, {model.topology.sde.kind}",
    }
    if any(name.startswith("projection_2d.") for name in state):
        parts["projection_2d"] = "2D to the width of 3D, for the contrastive loss"
    if loss.coefficient_displacements:
        parts["displacements"] = "small displacements of atoms, given the displaced geometry"
    objectives = {
        "contrastive": loss.coefficient_contrastive,
        "2D to 3D": loss.coefficient_2d_to_3d,
        "3D to 2D": loss.coefficient_3d_to_2d,
        "displacements": loss.coefficient_displacements,
    }
    used = ", ".join(f"{name} {value:g}" for name, value in objectives.items())
    lines = [
        *origin,
        f"Coefficients of the losses in `config.json`: {used}. At 0 a loss trains nothing.",
    ]
    if not origin:
        lines.insert(0, "It is not recorded which data these weights were trained on.")
    write_card(
        folder, state, parts, lines, tag="molecule-representation", use=PRETRAINED,
        title=f"MoleculeSDE, width {model.hidden_dim}",
        summary="Encoders of molecules, one of the topology (2D) and one of the geometry (3D), "
        "with the two score networks that they were trained with (Liu et al., ICML 2023).",
    )  # fmt: skip


def write_card(
    folder: Path,
    state: Mapping[str, Tensor],
    networks: Mapping[str, str],
    origin: Iterable[str],
    **texts: str,
) -> None:
    """Write a card.

    Args:
        networks: prefix of a network's tensors -> what it is.
        texts: the other parts of TEXT.
    """
    sizes = dict.fromkeys(networks, 0)
    for name, tensor in state.items():
        prefix = next((p for p in networks if name.startswith(f"{p}.")), None)
        if prefix and not name.endswith(STATISTICS):
            sizes[prefix] += tensor.numel()
    rows = [(f"`{name}`", networks[name], f"{size:,}") for name, size in sizes.items()]
    text = TEXT.format(
        files=markdown_table(
            ("file", "what"), ((f"`{name}`", what) for name, what in FILES.items())
        ),
        networks=markdown_table(("network", "what", "parameters"), rows),
        origin="\n".join(f"- {line}" for line in origin),
        **texts,
    )
    write_text(folder / NAME, text)


def describe_data(data: Mixture) -> list[str]:
    """Return what is known of the data of a run, without the folders of its machine."""
    lines = []
    for source, weight in zip(data.sources, data.weights, strict=True):
        manifest = source.manifest
        made = manifest.get("source", {})
        files = ", ".join(f"`{name}`" for name in made.get("files", [])[:5])
        facts = [
            f"{len(source):,} molecules" + f" of {files}" * bool(files),
            f"{manifest['atoms'] / len(source):.1f} atoms each on average",
            f"hydrogens {made['hydrogens']}" if "hydrogens" in made else "",
            f"a share of {weight:g} in each epoch" if weight < 1 else "",
            f"SHA-256 of the shards {source.digest}",
        ]
        lines.append(f"Data: {', '.join(filter(None, facts))}.")
    return lines


def _encoder_3d(model: ModelConfig) -> str:
    own = getattr(model, model.encoder_3d)
    names = ("num_interactions", "num_filters", "cutoff")
    return f"{model.encoder_3d}, {_sizes(own, *names)}".replace("schnet", "SchNet").replace(
        "painn", "PaiNN"
    )


def _sizes(part: Any, *names: str) -> str:
    """Return sizes as they are written in a configuration."""
    values = dataclasses.asdict(part)
    return ", ".join(f"{name} {json.dumps(values[name])}" for name in names if name in values)
