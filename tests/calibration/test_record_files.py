"""Records of local files: every type that a column may have, wherever it changes, and what goes wrong."""

import json
from decimal import Decimal

import pytest

from replaceme.calibration import record_files
from replaceme.calibration.record_files import check_columns, read_records

LATE = 20_000  # records, more than the shuffle buffer holds


def read(path, *columns):
    return list(read_records(str(path), columns or ("text",)))


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


VALUES = {
    "null, then text": (None, "w1"),
    "whole numbers, then others": (1, 1.5),
    "numbers, then text": (1, "w1"),
    "structs with other keys": ({"a": 1}, {"b": {"c": "w1"}}),
    "lists of other types": ([1], ["w1"]),
    "text, then a list": ("w1", [{"a": None}]),
    "text that looks like a time": ("2019-04-25T12:57:54Z", "w1"),
}


@pytest.mark.parametrize("form", ["jsonl", "json", "array"])
def test_a_column_may_change_its_type_at_any_record(tmp_path, form):
    """Whether it is asked for or not."""
    for number, (first, then) in enumerate(VALUES.values()):
        records = [{"text": f"w{k}", "x": first if k < 3 else then} for k in range(6)]
        path = tmp_path / f"{number}.{'json' if form == 'array' else form}"
        path.write_text(json.dumps(records, indent=1)) if form == "array" else lines(path, *records)
        assert read(path) == [{"text": one["text"]} for one in records]
        assert read(path, "x", "text") == [{"x": one["x"], "text": one["text"]} for one in records]


def test_a_column_may_appear_late(tmp_path):
    records = [{"id": k} for k in range(LATE)] + [{"text": "w1", "id": 0}]
    path = lines(tmp_path / "a.jsonl", *records)
    check_columns(str(path), ("text",))
    assert read(path)[-2:] == [{"text": None}, {"text": "w1"}]


def test_records_of_json_in_any_layout(tmp_path, monkeypatch):
    """Over several lines, an array, in one line, of strings; read in pieces that end anywhere."""
    records = [{"text": 'w1 ] , "\\', "x": [1, -2.5e3, True]}, {"text": "\u00e9\U0001f600 w2"}, {"text": "w3" * 50}]
    expected = [{"text": one["text"]} for one in records]
    forms = {
        "a.json": json.dumps(records),
        "b.json": json.dumps(records, indent=2, ensure_ascii=False),
        "c.json": "\n".join(json.dumps(one, indent=2) for one in records),
        "d.jsonl": " \n" + json.dumps(records),
        "e.json": json.dumps([one["text"] for one in records]),
        "f.JSON": "\ufeff" + json.dumps(records) + "\n\n",
        "g.JSONL": "\ufeff" + "\r\n".join(map(json.dumps, records)) + "\r\n\r\n",
        "h.json": "[" + "\n" * 300 + "]",
    }
    for size in (7, 64, 1 << 20):
        monkeypatch.setattr(record_files, "CHUNK", size)
        for name, content in forms.items():
            (tmp_path / name).write_bytes(content.encode())
            assert read(tmp_path / name) == ([] if name == "h.json" else expected), (name, size)


def arrays():
    """Yield every type of Arrow in which a column of text, or of conversations, may be stored."""
    import pyarrow as pa

    text = ["w1", None, "w2"]
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        yield str(kind), pa.array(text, kind), text
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        yield str(kind), pa.array([one and one.encode() for one in text], kind), [b"w1", None, b"w2"]
    yield "dictionary", pa.array(text).dictionary_encode(), text
    yield "decimal", pa.array([Decimal("1.5"), None, None]), [Decimal("1.5"), None, None]
    turns = [[{"role": "user", "content": "w1"}], None, []]
    struct = pa.struct({"role": pa.string(), "content": pa.large_string()})
    for kind in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view):
        yield str(kind(struct)), pa.array(turns, kind(struct)), turns


def test_every_type_of_parquet(tmp_path):
    """In several groups of rows, and in a file whose name is in capitals."""
    import pyarrow as pa
    from pyarrow import parquet

    for number, (name, array, values) in enumerate(arrays()):
        path = tmp_path / f"{number}.PARQUET"
        parquet.write_table(pa.table({"text": array, "other.x": [1, 2, 3]}), path, row_group_size=2)
        check_columns(str(path), ("text", "other.x"))
        assert [one["text"] for one in read(path)] == values, name
        assert read(path, "other.x")[2] == {"other.x": 3}


def test_a_column_that_no_record_has(tmp_path, refuses, monkeypatch):
    """At once where the file names it nowhere, else at its end."""
    path = lines(tmp_path / "a.jsonl", {"body": "w1", "id": 1}, {"body": "text", "late": "x"})
    with refuses("a.jsonl: no column 'nowhere'; its columns: body, id"):
        check_columns(str(path), ("body", "nowhere"))
    check_columns(str(path), ("late",))
    for column in ("text", "caf\u00e9"):  # the word is there; may be written in another way
        check_columns(str(path), (column,))
        with refuses(f"a.jsonl: no column {column!r}; its columns: body, id"):
            read(path, column)


FAULTS = {
    "cut.json": (b'[{"text": "w1"}, {"text": "w', "line 1: not JSON (Unterminated string"),
    "open.json": (b'[{"text": "w1"},\n', "line 2: not JSON"),
    "in.json": (b'[{"text": "w1"},\n{"text": w2},\n' + b" " * 200 + b'{"text": "w3"}]', "line 2: not JSON (Expecting"),
    "number.json": (b'[{"text": "w1"},\n 3]', "line 2: not a record {...} but int"),
    "after.json": (b'[{"text": "w1"}]\n{"text": "w2"}', "line 1: not JSON"),
    "latin.json": (b'[{"text": "caf\xe9"}]', "not UTF-8 text"),
    "deep.json": (b"[" * 100_000, "not JSON (nested too deeply)"),
    "digits.jsonl": (b'{"text": ' + b"9" * 5000 + b"}\n", "line 1: not JSON (Exceeds the limit"),
    "sixteen.jsonl": ('{"text": "w1"}'.encode("utf-16"), "not UTF-8 text (UTF-16); save it as UTF-8"),
    "sixteen.json": ('[{"text": "w1"}]'.encode("utf-16"), "not UTF-8 text (UTF-16); save it as UTF-8"),
    "thirtytwo.jsonl": ('{"text": "w1"}'.encode("utf-32"), "not UTF-8 text (UTF-32); save it as UTF-8"),
    "bare.jsonl": ('{"text": "w1"}'.encode("utf-16-le"), "line 1: not UTF-8 text (a NUL at byte 1"),
    "nul.jsonl": (b'{"text": "w1"}\n{"text": "w\x002"}\n', "line 2: not UTF-8 text (a NUL at byte 11"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_files_that_cannot_be_read_on(tmp_path, refuses, name):
    content, message = FAULTS[name]
    (tmp_path / name).write_bytes(content)
    with refuses(f"{tmp_path / name}: ", message):
        read(tmp_path / name)


def test_a_record_that_is_too_long(tmp_path, refuses, monkeypatch):
    monkeypatch.setattr(record_files, "LONGEST_LINE", 100)
    monkeypatch.setattr(record_files, "CHUNK", 16)
    for name in ("a.jsonl", "a.json"):
        lines(tmp_path / name, {"text": "w1"}, {"text": "w" * 200})
        with refuses(f"{name}: line 2 is longer than", "split it"):
            read(tmp_path / name)


def test_no_record_at_all(tmp_path, refuses):
    for name, content, message in (
        ("a.jsonl", b"", "empty"),
        ("b.jsonl", b"\n\n", "no record"),
        ("c.json", b"[]", "no"),
    ):
        (tmp_path / name).write_bytes(content)
        with refuses(f"{name}: {message}", "give another file"):
            check_columns(str(tmp_path / name), ("text",))
