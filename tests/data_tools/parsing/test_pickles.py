import sys

import pytest

from fixtures.pickled import fairchem_graphs, geom_pickle, qm9_graphs, unimol
from fixtures.readers import TRUST, convert, recognised
from msde.data_tools.readers import get_reader
from msde.errors import MsdeError

UNPICKLED = []


def _listen(event, arguments):
    if event == "pickle.find_class":
        UNPICKLED.append(arguments)


sys.addaudithook(_listen)


@pytest.mark.parametrize("format", ["geom", "pyg", "unimol", "fairchem"])
def test_pickles_are_refused_without_being_loaded(tmp_path, format):
    make = {"geom": geom_pickle, "pyg": qm9_graphs, "unimol": unimol, "fairchem": fairchem_graphs}
    path, reader = make[format](tmp_path), get_reader(format)
    raw = next(get_reader(format, TRUST).read(path))
    UNPICKLED.clear()
    assert recognised(path) == format
    refusal = f"{path.name} holds Python pickles.*--trust-pickle"
    with pytest.raises(MsdeError, match=refusal):
        reader.facts([path])
    with pytest.raises(MsdeError, match=refusal):
        next(reader.read(path))
    with pytest.raises(MsdeError, match=refusal):
        reader.parse(raw)
    assert UNPICKLED == []


def test_the_audit_hook_sees_unpickling(tmp_path):
    UNPICKLED.clear()
    convert(geom_pickle(tmp_path), TRUST)
    assert UNPICKLED
