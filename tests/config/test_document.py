"""docs/configuration.md is made from the schema, which explains every key."""

import dataclasses

import pytest

from msde.config import document, schema
from msde.config.checks import RANGES, range_of
from msde.config.schema import Config, leaves

SECTIONS = [c for c in vars(schema).values() if dataclasses.is_dataclass(c)]


def test_the_file_is_what_the_generator_prints():
    assert document.PATH.read_text() == document.document(), "run: make docs"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_explained_in_sentences(section):
    assert section.__doc__.rstrip().endswith(".")
    for field in dataclasses.fields(section):
        if field.default_factory is dataclasses.MISSING:
            text = document.EXPLAINED[section.__name__][field.name]
            assert text.endswith(".") and len(text) > 10, field.name


def test_every_key_is_in_the_file():
    text = document.PATH.read_text()
    for key in leaves(Config()):
        assert f"\n| `{key}` | " in text


def test_ranges_are_of_keys_that_exist():
    keys = leaves(Config())
    assert set(RANGES) <= set(keys)
    assert range_of("model.gin.num_layers", 5)[0] == "at least 1"
    assert range_of("run.log_every", 10)[0] == "positive"
    assert range_of("loss.negatives", "slot") is None
