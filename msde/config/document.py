"""docs/configuration.md, made from the schema: `python -m msde.config.document [--write]`.

A key is explained by the comment above it in `schema.py`, a section by the docstring of its class.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import json
import sys
import tokenize
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from msde.config import deepspeed, schema
from msde.config.checks import range_of
from msde.config.presets import PRESETS
from msde.config.resolve import make_config, read_json
from msde.config.schema import RENAMED, Config, leaves
from msde.files import markdown_table

PATH = Path(__file__).parents[2] / "docs/configuration.md"
TEXT = """# Configuration

`python -m msde.config.document --write` (`make docs`) makes this file from the comments in
`msde/config/schema.py`.

Three things decide a run: a tree of keys, DeepSpeed's JSON, and the data. The keys come from a
preset (`--preset`), then from a JSON file (`--config`), then from `key=value` on the command line;
a later one overrides an earlier one. On the command line a value is read as JSON where it is JSON
(`null`, `true`, `1e-3`), else as text. An unknown key is an error that names the nearest known one.
`--dry-run` prints the resulting configuration.

The column `base` is empty where `base` has the value of `paper`.
{sections}
## Presets

Every key in which two presets differ:

{presets}

## Former names

{renamed}

## DeepSpeed's JSON

It owns the slots of a step (`train_batch_size`), gradient clipping, precision (`torch_autocast`),
ZeRO and offloading; no key above repeats them. `--deepspeed_config` names the file. The default is
`cpu_debug.json` on CPUs and `zero1.json` on GPUs. Every key is compared with those of the DeepSpeed
release in setup.py, because DeepSpeed itself ignores a misspelt one.

- `train_batch_size`: slots of an optimizer step. "auto" is one for each rank, or as many as a
  resumed run had. The number of ranks must divide it.
- `train_micro_batch_size_per_gpu`: 1, because a forward pass takes one slot.
- `gradient_accumulation_steps`: slots divided by ranks; "auto" computes it.
- `gradient_clipping`: largest norm of the gradient. Where it is missing nothing is clipped;
  DeepSpeed alone would clip at 1.
- `timers.throughput`: off unless `enabled` is true, because it waits for all work of the GPU twice
  a slot. Training has curves of the throughput of its own.

{refused}

The files in `ds_configs/` state every value:

{shipped}
"""


def explanations(source: str) -> dict[str, dict[str, str]]:
    """Return the comment above each field of each class, empty where there is none."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            fields = found.setdefault(node.name, {})
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    first = item.lineno
                    while first - 1 in comments:
                        first -= 1
                    text = " ".join(comments[line] for line in range(first, item.lineno))
                    fields[item.target.id] = text
    return found


EXPLAINED = explanations(inspect.getsource(schema))


def code(value: Any) -> str:
    """Return a value as it is written in JSON, text without its quotation marks."""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def allowed(kind: Any, key: str, value: Any) -> str:
    """Return which values a key takes, in words."""
    options = typing.get_args(kind) or (kind,)
    if typing.get_origin(kind) is Literal:
        return ", ".join(map(code, options))
    words = {int: "integer", float: "number", bool: "`true`, `false`", str: "text"}
    (name,) = (words[option] for option in options if option is not type(None))
    limits, _ = range_of(key, value) or ("", None)
    name = f"{limits} {name}" if limits == "positive" else f"{name} {limits}".rstrip()
    return f"{name}, or `null`" if len(options) > 1 else name


def sections(node: Any, base: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the text of one section of the tree and of those below it."""
    kinds = typing.get_type_hints(type(node))
    below, rows = [], []
    for field in dataclasses.fields(node):
        key, value = f"{prefix}{field.name}", getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            below.append(sections(value, base, f"{key}."))
            continue
        other = "" if base[key] == value else code(base[key])
        text = EXPLAINED[type(node).__name__][field.name]
        rows.append((code(key), allowed(kinds[field.name], key, value), code(value), other, text))
    if rows:
        yield f"\n## `{prefix[:-1]}`\n\n{inspect.getdoc(type(node))}\n"
        yield markdown_table(("key", "values", "`paper`", "`base`", "meaning"), rows)
    for deeper in below:
        yield from deeper


def shipped() -> Iterator[tuple[str, ...]]:
    """Yield a row for each of DeepSpeed's configurations that come with the package."""
    for path in sorted(deepspeed.shipped_config("zero1").parent.glob("*.json")):
        values = read_json(path)
        zero, bfloat16 = values["zero_optimization"], deepspeed.in_bfloat16(values)
        held = {"offload_optimizer": "optimizer", "offload_param": "weights"}
        host = " and ".join(name for key, name in held.items() if key in zero)
        products = "bfloat16" if bfloat16 else "float32"
        yield code(path.name), str(deepspeed.zero_stage(values)), products, host


def document() -> str:
    """Return the text of docs/configuration.md."""
    values = {name: leaves(make_config(name)) for name in PRESETS}
    rows = {key: [preset[key] for preset in values.values()] for key in leaves(Config())}
    differing = [(key, *row) for key, row in rows.items() if any(v != row[0] for v in row)]
    refused = (deepspeed.OWNED_HERE | deepspeed.REFUSED).items()
    return TEXT.format(
        sections="\n".join(sections(Config(), values["base"])) + "\n",
        presets=markdown_table(("key", *map(code, values)), (map(code, row) for row in differing)),
        renamed=markdown_table(("former name", "name"), (map(code, p) for p in RENAMED.items())),
        refused=markdown_table(("refused", "because"), ((code(key), why) for key, why in refused)),
        shipped=markdown_table(
            ("file", "ZeRO stage", "matrix products in", "held on the host"), shipped()
        ),
    )


def main() -> None:
    """Print the text, or write it to its place in the checkout."""
    if sys.argv[1:] == ["--write"]:
        PATH.write_text(document())
    else:
        sys.stdout.write(document())


if __name__ == "__main__":
    main()
