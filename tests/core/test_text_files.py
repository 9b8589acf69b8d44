"""Text of other encodings and with marks, alike in every kind of file that is read."""

import codecs

import pytest

from replaceme.calibration.documents import check_source
from replaceme.config.calibrations import CalibrationConfig
from replaceme.core.text_files import decoded, read_lines, read_text
from replaceme.core.yaml_file import read_yaml
from replaceme.evaluation.labelled_images import _lines


def test_a_byte_order_mark_is_dropped_and_lines_end_alike(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(codecs.BOM_UTF8 + "w1\r\nw2\rcaf\u00e9 \n\n".encode())
    assert read_text(path) == "w1\nw2\ncaf\u00e9 \n\n"
    assert read_lines(path) == _lines(path) == ["w1", "w2", "caf\u00e9"]
    path.write_bytes(codecs.BOM_UTF8 + b"a: 1\n")
    assert read_yaml(path) == {"a": 1}
    assert decoded("w\ufeff1".encode()) == "w\ufeff1", "elsewhere it is a letter like others"


OTHERS = {
    "UTF-16": ("a: w1".encode("utf-16"), "not UTF-8 text (UTF-16)"),
    "UTF-16, other end first": (codecs.BOM_UTF16_BE + "a: w1".encode("utf-16-be"), "not UTF-8 text (UTF-16)"),
    "UTF-32": ("a: w1".encode("utf-32"), "not UTF-8 text (UTF-32)"),
    "UTF-32, other end first": (codecs.BOM_UTF32_BE + "a: w1".encode("utf-32-be"), "not UTF-8 text (UTF-32)"),
    "UTF-16 without a mark": ("a: w1".encode("utf-16-le"), "not UTF-8 text (a NUL at byte 1"),
    "NUL": (b"a: w1\0", "not UTF-8 text (a NUL at byte 5"),
    "Latin-1": (b"a: \xe9", "not UTF-8 text (byte 3)"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_encodings_are_refused_with_what_they_are(case, tmp_path, refuses):
    content, message = OTHERS[case]
    path = tmp_path / "a.TXT"
    path.write_bytes(content)
    for read in (read_text, read_lines, read_yaml, _lines):
        with refuses(f"{path}: {message}", "; save it as UTF-8"):
            read(path)
    if "without" not in case and "UTF" in case:  # what its first bytes show, before any work
        with refuses(f"{path}: {message}"):
            check_source(CalibrationConfig(dataset=str(path)))
