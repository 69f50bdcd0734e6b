"""Tables as users bring them: delimiters, encodings, columns, blanks."""

import codecs

import numpy as np
import pytest

from fixtures.readers import convert, recognised
from msde.data_tools.parsing.tables import layout
from msde.data_tools.readers import Options, get_reader
from msde.errors import MsdeError

FLAT = Options(conformers=0)
ROWS = [("CCO", "a1", "-0.5"), ("CCN", "Ä2", "1.25"), ("c1ccccc1", "a3", "")]
HEADER = ("smiles", "id", "logS")


def write(path, rows=ROWS, header=HEADER, delimiter=",", encoding="utf-8", end="\n", before=""):
    lines = [delimiter.join(cells) for cells in [header, *rows]]
    path.write_bytes((before + end.join(lines) + end).encode(encoding))
    return path


def values(path, options=FLAT):
    """Names and labels of the molecules, by SMILES."""
    assert recognised(path) == "smiles"
    _, parsed, rejected = convert(path, options)
    assert not rejected
    raws = {raw.line: raw for raw in get_reader("smiles", options).read(path)}
    return {raws[line].payload: (raws[line].name, one.y) for line, one in parsed.items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    for smiles, (name, y) in expected.items():
        assert found[smiles][0] == name and np.array_equal(found[smiles][1], y, equal_nan=True)


EXPECTED = {"CCO": ("a1", (-0.5,)), "CCN": ("Ä2", (1.25,)), "c1ccccc1": ("a3", (np.nan,))}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiter_encoding_and_line_ends_are_found(tmp_path, delimiter, encoding, end):
    path = write(tmp_path / "t.csv", delimiter=delimiter, encoding=encoding, end=end)
    same(values(path), EXPECTED)
    taken = dict(get_reader("smiles", FLAT).facts([path]).taken)
    words = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
    assert taken["delimiter"] == words[delimiter]
    is_utf_8 = encoding.startswith("utf-8")
    assert taken.get("encoding", "utf-8")[:6] == ("utf-8" if is_utf_8 else encoding)[:6] or (
        taken["encoding"] == "cp1252" and encoding == "latin-1"
    )


def test_the_line_of_excel_names_the_delimiter(tmp_path):
    same(values(write(tmp_path / "t.csv", delimiter=";", before="sep=;\n")), EXPECTED)


def test_numbers_with_decimal_commas(tmp_path):
    rows = [(smiles, name, y.replace(".", ",")) for smiles, name, y in ROWS]
    path = write(tmp_path / "t.csv", rows, delimiter=";")
    same(values(path), EXPECTED)
    assert dict(get_reader("smiles", FLAT).facts([path]).taken)["decimal sign"] == "comma"


def test_an_encoding_that_cannot_be_found_is_an_error_that_names_the_option(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"smiles,id\nCCO,\x81\x8d\n")
    with pytest.raises(MsdeError, match="neither UTF-8 nor Windows-1252.*--encoding"):
        get_reader("smiles", FLAT).facts([path])
    russian = write(tmp_path / "r.csv", [("CCO", "этанол", "1")], encoding="koi8-r")
    same(values(russian, Options(conformers=0, encoding="koi8-r")), {"CCO": ("этанол", (1.0,))})


def test_a_letter_far_down_does_not_change_names_before_it(tmp_path):
    rows = [("C" * (n % 9 + 1), f"m{n}", "1") for n in range(60_000)]
    path = write(tmp_path / "t.csv", [*rows, ("CCO", "Ä", "1")], encoding="latin-1")
    raws = list(get_reader("smiles", FLAT).read(path))
    assert raws[-1].name == "Ä" and len(raws) == 60_001


@pytest.mark.parametrize("missing", ["", "NA", "nan", "None", "n/a", "-"])
def test_missing_values_in_any_dress(tmp_path, missing):
    path = write(tmp_path / "t.csv", [("CCO", "a", missing), (missing, "b", "2")])
    _, parsed, rejected = convert(path, FLAT)
    assert np.isnan(parsed[2].y[0]) and rejected == {"no SMILES": 1}


def test_white_space_inside_a_smiles_is_a_reason_and_around_it_is_nothing(tmp_path):
    path = write(tmp_path / "t.csv", [(" CCO ", " a ", " 1 "), ("CC C", "b", "2")])
    _, parsed, rejected = convert(path, FLAT)
    assert rejected == {"white space inside the SMILES": 1} and parsed[2].y == (1.0,)


def test_extensions_are_read_and_are_not_part_of_the_name(tmp_path):
    table = write(tmp_path / "t.csv", [("C[C@H](O)CC |&1:1|", "a", "1")])
    lines = tmp_path / "t.smi"
    lines.write_text("C[C@H](O)CC |&1:1| sec butanol\nCCO |(0,0,;1,0,;2,0,)|\nCC C\n")
    assert recognised(table) == recognised(lines) == "smiles"
    _, parsed, _ = convert(lines, FLAT)
    assert "racemic" in parsed[1].notes[0] and "coordinates" in parsed[2].notes[0]
    assert [raw.name for raw in get_reader("smiles").read(lines)] == ["sec butanol", "", "C"]
    assert "racemic" in convert(table, FLAT)[1][2].notes[0]


def test_columns_that_are_not_read_are_listed_with_the_reason(tmp_path):
    header = ("smiles", "id", "IC50", "remark", "IC50", "idx", "smiles_2")
    rows = [("CCO", "a", "1.5", "good", "7", "1", "C"), ("CC", "b", ">100", "", "8", "2", "C")]
    facts = layout(write(tmp_path / "t.csv", rows, header), FLAT).facts
    left_out = dict(facts.left_out)
    assert facts.labels == () and ("name", "id") in facts.taken
    assert left_out["remark"].startswith("text in 1 of 2 rows, as 'good'")
    assert left_out["IC50"].startswith("text in 1 of 2 rows, as '>100'")
    assert left_out["IC50 (column 5)"] == "another column has this name"
    assert left_out["idx"] == "numbers or names the molecules" and "smiles_2" in left_out
    text = ("IC50", "text in 1 of 2 rows, as '>100' in row 2")
    assert text in facts.left_out


def test_names_with_commas_and_equal_signs_can_be_chosen(tmp_path):
    header = ("smiles", '"logD, pH=7.4"', "IC50 [nM]")
    path = write(tmp_path / "t.csv", [("CCO", "0.5", "10")], header)
    assert [label.name for label in layout(path, FLAT).labels] == ["logD, pH=7.4", "IC50 [nM]"]
    for text, unit in (("logD, pH=7.4", ""), ("logD, pH=7.4=log10", "log10")):
        (label,) = layout(path, Options(label_columns=(text,))).labels
        assert (label.name, label.unit) == ("logD, pH=7.4", unit)


def test_the_column_of_smiles_is_found_by_its_cells(tmp_path):
    rows = [("A-1", "CCO", "1"), ("A-2", "c1ccccc1", "2")]
    path = write(tmp_path / "t.csv", rows, ("code", "structure", "act"))
    found = layout(path, FLAT)
    assert found.title(found.smiles) == "structure"
    assert [label.name for label in found.labels] == ["act"]
    two = write(tmp_path / "u.csv", [("CCO", "CCC"), ("CC", "CN")], ("acid", "base"))
    with pytest.raises(MsdeError, match="columns acid, base hold SMILES.*--smiles-column"):
        layout(two, FLAT)
    none = write(tmp_path / "v.csv", [("x1", "y1"), ("x2", "y2")], ("one", "two"))
    with pytest.raises(MsdeError, match="no column holds SMILES, found one, two"):
        layout(none, FLAT)


def test_a_row_with_more_cells_than_the_header_is_rejected(tmp_path):
    path = write(tmp_path / "t.csv", [("CCO", "acetic, acid", "1"), ("CC", "b", "2")])
    _, parsed, rejected = convert(path, FLAT)
    assert rejected == {"4 cells where the header has 3; quote a cell that holds the delimiter": 1}
    assert list(parsed) == [3]


def test_a_quotation_mark_that_is_not_closed_is_an_error_with_its_line(tmp_path):
    path = write(tmp_path / "t.csv", [("CCO", "a", "1"), ("CC", '"b', "2"), ("C", "c", "3")])
    with pytest.raises(MsdeError, match="the row that begins in line 3 cannot be read"):
        get_reader("smiles", FLAT).facts([path])


def test_a_byte_order_mark_is_no_part_of_a_title(tmp_path):
    path = tmp_path / "t.smi"
    path.write_bytes(codecs.BOM_UTF8 + b"CCO ethanol\n")
    assert [raw.payload for raw in get_reader("smiles").read(path)] == ["CCO"]


def test_columns_of_one_name_are_all_listed(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("smiles,x,x,x,,\nCCO,1,2,3,,5\n")
    facts = get_reader("smiles", FLAT).facts([path])
    assert facts.taken[1] == ("label", "x") and facts.left_out == (
        ("x (column 3)", "another column has this name"),
        ("x (column 4)", "another column has this name"),
        ("(column 5)", "it has no name"),
        ("(column 6)", "another column has this name"),
    )


def test_a_label_is_chosen_once():
    with pytest.raises(MsdeError, match="label 'x' is chosen twice"):
        Options(label_columns=("x=eV", "y", "x")).chosen_labels()


def read_as(tmp_path, text, name="t.csv", **options):
    """Return the facts of a table, and its payloads with labels."""
    (tmp_path / name).write_text(text)
    reader = get_reader("smiles", Options(conformers=0, **options))
    facts = reader.facts([tmp_path / name])
    return facts, [(raw.payload, raw.y) for raw in reader.read(tmp_path / name)]


@pytest.mark.parametrize("header", ["smiles,gap", "#smiles,gap"])
def test_comments_before_the_header_are_none_of_the_table(tmp_path, header):
    text = f"# made by me\n# on monday, \n\n{header}\nCCO,1.5\nCC,2.5\n"
    facts, found = read_as(tmp_path, text)
    assert found == [("CCO", (1.5,)), ("CC", (2.5,))]
    assert facts.left_out == (("comments", "2 before the table"),)


def test_rows_that_are_wider_than_the_first_have_their_columns_listed(tmp_path):
    facts, _ = read_as(tmp_path, "CCO\nCC,ethane,5\nC,methane,6\n")
    assert [name for name, _ in facts.left_out] == ["3"] and ("name", "2") in facts.taken


def test_units_in_the_names_of_columns_are_known(tmp_path):
    text = "smiles,gap [eV],mu (D),IC50 (log)\nCCO,27.211386245988,2,3\n"
    facts, found = read_as(tmp_path, text)
    assert [label.unit for label in facts.labels] == ["eV", "D", ""]
    facts, found = read_as(tmp_path, text, label_columns=("gap [eV]=Ha",))
    assert facts.notes == ("gap [eV] is converted from eV to Ha",)
    assert found[0][1] == pytest.approx((1.0,))
    with pytest.raises(MsdeError, match=r"gap \[eV\] in eV, which cannot be converted to 'D'"):
        read_as(tmp_path, text, label_columns=("gap [eV]=D",))


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["−1.5", "+2.5"], (-1.5, 2.5)),  # a minus sign that is no hyphen
        (["n.d.", "missing", "1"], (np.nan, np.nan, 1)),
        (["9007199254740993", "1"], None),  # it would become another number
        (["9007199254740992", "1"], (2.0**53, 1)),
        (["1_000", "2"], None),
        (["1,234", "2,345"], None),  # thousands or decimals
        (["1,234", "2,34"], (1.234, 2.34)),
        (["95%", "5%"], None),
        (["True", "False"], None),
    ],
)
def test_numbers_are_those_that_are_written_or_text(tmp_path, cells, expected):
    text = "smiles\tx\n" + "".join(f"CCO\t{cell}\n" for cell in cells)
    facts, found = read_as(tmp_path, text, "t.tsv")
    assert [name for name, _ in facts.left_out] == (["x"] if expected is None else [])
    if expected is not None:
        np.testing.assert_array_equal([y for _, (y,) in found], expected)


def test_in_tables_with_semicolons_commas_are_decimal(tmp_path):
    assert read_as(tmp_path, "smiles;x\nC;1,234\n")[1] == [("C", (1.234,))]


def test_a_column_without_values_has_a_note(tmp_path):
    facts, _ = read_as(tmp_path, "smiles,gap,mu\nCCO,,1\nCC,NA,2\n")
    assert facts.notes == ("gap is missing in all of the first 2 rows",)


def test_columns_that_number_are_no_labels(tmp_path):
    text = "smiles,Compound_ID,target_id,gap\nCCO,1001,7,1.5\n"
    facts, found = read_as(tmp_path, text)
    assert ("name", "Compound_ID") in facts.taken and found == [("CCO", (1.5,))]
    assert facts.left_out == (("target_id", "numbers or names the molecules"),)


def test_isomeric_smiles_are_read_before_others(tmp_path):
    text = "CanonicalSMILES,IsomericSMILES\nCC(F)O,C[C@H](F)O\n"
    assert read_as(tmp_path, text)[1] == [("C[C@H](F)O", ())]


def test_further_columns_of_a_smi_file_are_said_to_be_in_the_name(tmp_path):
    facts, _ = read_as(tmp_path, "smiles\tname\tgap\nCCO\tethanol\t1.5\n", "t.smi")
    assert [name for name, _ in facts.left_out] == ["gap"]


def test_reactions_are_named(tmp_path):
    path = write(tmp_path / "t.csv", [("CCO>>CC=O", "a", "1"), ("[NH3]->[Cu]", "b", "1")])
    assert convert(path, FLAT)[2] == {"a reaction, expected a molecule": 1}


def test_concentrations_are_converted_and_other_units_of_the_user_refused(tmp_path):
    text = "smiles,c [uM],pIC50 (uM),set (train)\nCCO,2.5,6,1\n"
    facts, found = read_as(tmp_path, text)
    assert [label.unit for label in facts.labels] == ["uM", "uM", ""]
    facts, found = read_as(tmp_path, text, label_columns=("c [uM]=nM", "set (train)=%"))
    assert facts.notes == ("c [uM] is converted from uM to nM",) and found == [("CCO", (2500, 1))]
    with pytest.raises(MsdeError, match=r"pIC50 \(uM\) in uM, .*cannot be converted to 'nM'"):
        read_as(tmp_path, text, label_columns=("pIC50 (uM)=nM",))


@pytest.mark.parametrize("header", ["Compound ID,Structure,act", "Compound ID,SMILES,act"])
def test_a_column_that_is_misspelt_is_answered_with_the_names_that_there_are(tmp_path, header):
    name = header.split(",")[1]
    text = f"{header}\nM0,CCO,1\nM1,CCN,2\n"
    with pytest.raises(MsdeError) as error:
        read_as(tmp_path, text, smiles_column=name.lower())
    found = f"found {header.replace(',', ', ')}; did you mean {name!r}?"
    assert str(error.value).endswith(f"has no column {name.lower()!r}, {found}")
    with pytest.raises(MsdeError, match=f"no column 'zzz', found {header.replace(',', ', ')}$"):
        read_as(tmp_path, text, smiles_column="zzz")
    with pytest.raises(MsdeError, match="no column 'Act', .*; did you mean 'act'"):
        read_as(tmp_path, text, label_columns=("Act",))


def test_columns_of_a_table_without_header_are_numbers(tmp_path):
    with pytest.raises(MsdeError, match="no column 'structure', found 1, 2$"):
        read_as(tmp_path, "M0,CCO\nM1,CCN\n", smiles_column="structure")
    assert read_as(tmp_path, "M0,CCO\nM1,CCN\n", smiles_column="2")[1] == [("CCO", ()), ("CCN", ())]


def test_a_table_that_is_only_a_header_has_a_note(tmp_path):
    facts, found = read_as(tmp_path, "smiles,gap,mu\n")
    assert facts.notes == ("the table has a header and no rows",) and found == []


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["-0,001", "1,687", ""], (-0.001, 1.687, np.nan)),
        (["1,5E-3", "2", "-12,25"], (1.5e-3, 2, -12.25)),
        (["1,234", "2,345"], None),  # thousands or decimals
        (["1,234.5", "0,5"], None),
        (["0,5", "0.5"], None),
    ],
)
def test_decimal_commas_in_quotes_are_read_in_tables_with_commas(tmp_path, cells, expected):
    text = "smiles,x\n" + "".join(f'CCO,"{cell}"\n' for cell in cells)
    facts, found = read_as(tmp_path, text)
    assert [name for name, _ in facts.left_out] == (["x"] if expected is None else [])
    if expected is not None:
        assert ("decimal sign", "comma") in facts.taken
        np.testing.assert_array_equal([y for _, (y,) in found], expected)


def test_pairs_of_numbers_beside_decimal_points_are_no_decimals(tmp_path):
    facts, found = read_as(tmp_path, 'smiles,gap,bond\nCCO,1.5,"1,2"\nCC,2.5,"1,12"\n')
    assert found == [("CCO", (1.5,)), ("CC", (2.5,))]
    assert facts.left_out == (("bond", "text in 2 of 2 rows, as '1,2' in row 1"),)
