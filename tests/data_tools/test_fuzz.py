"""Damaged files of every format: an error in one line or a data set that verifies, and no hang.

Files that hold pickles are damaged only where they are refused: none is ever loaded.
"""

import signal

import numpy as np
import pytest

from fixtures.formats import FLAT, FORMAT_OF, PICKLES, write_valid
from msde.data_tools.convert import convert
from msde.data_tools.options import AUTO
from msde.data_tools.verify import verify
from msde.errors import MsdeError

SECONDS = 10
NAMES = sorted(FORMAT_OF)
BESIDE = {
    "gdb9.sdf": ("gdb9.sdf.csv",),
    "pcqm4m-v2-train.sdf": ("data.csv.gz",),
}


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The bytes of a valid file of each kind, and of the tables beside them."""
    folder = tmp_path_factory.mktemp("valid")
    write_valid(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def damage(rng, content, other):
    """Return bytes with one to three random changes."""
    for _ in range(rng.integers(1, 4)):
        i, j = sorted(rng.integers(0, len(content) + 1, 2).tolist())
        j = min(j, i + int(rng.integers(1, 200)))
        kind = rng.integers(7)
        if kind == 0:  # flip bits
            flipped = bytearray(content)
            for place in rng.integers(0, max(len(content), 1), rng.integers(1, 9)):
                flipped[place : place + 1] = bytes(
                    b ^ (1 << int(rng.integers(8))) for b in flipped[place : place + 1]
                )
            content = bytes(flipped)
        elif kind == 1:  # cut the end off
            content = content[:i]
        elif kind == 2:  # delete
            content = content[:i] + content[j:]
        elif kind == 3:  # repeat
            content = content[:j] + content[i:]
        elif kind == 4:  # insert
            content = content[:i] + rng.bytes(int(rng.integers(1, 20))) + content[i:]
        elif kind == 5:  # another number, sign or separator
            letter = rng.choice(list(b'0123456789-+.eE,;|\t\n\r"<>$ \0'))
            content = content[:i] + bytes([letter]) + content[i + 1 :]
        else:  # go on as another file
            content = content[:i] + other[int(rng.integers(len(other))) :]
    return content


def out_of_time(number, frame):
    raise TimeoutError(f"more than {SECONDS} s")


def check(seed, contents, folder):
    """Damage one file and convert it."""
    rng = np.random.default_rng([17, seed])
    name = NAMES[seed % len(NAMES)]
    other = NAMES[rng.integers(len(NAMES))]
    damaged = damage(rng, contents[name], contents[other])
    (folder / name).write_bytes(damaged)
    for table in BESIDE.get(name, ()):
        beside = contents[table]
        (folder / table).write_bytes(damage(rng, beside, beside) if seed % 3 == 0 else beside)
    format = AUTO if rng.random() < 0.3 else FORMAT_OF[name]
    output = folder / "out"
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(SECONDS)
    try:
        convert([folder / name], output, format, options=FLAT)
    except MsdeError as error:
        assert "\n" not in str(error) and "allow_pickle" not in str(error)
        assert not (output / "manifest.json").exists()
    else:
        assert damaged == contents[name] or name not in PICKLES
        assert not list(verify(output))
        assert not (output / "parts").exists()
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("start", range(0, 150, 25))
def test_damaged_files(tmp_path, contents, start):
    for seed in range(start, start + 25):
        (tmp_path / str(seed)).mkdir()
        check(seed, contents, tmp_path / str(seed))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(150, 2000, 50))
def test_more_damaged_files(tmp_path, contents, start):
    for seed in range(start, start + 50):
        (tmp_path / str(seed)).mkdir()
        check(seed, contents, tmp_path / str(seed))
