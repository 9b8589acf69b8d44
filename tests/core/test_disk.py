"""Room on disks, counted for each of them."""

from types import SimpleNamespace

import pytest

from replaceme.core import disk
from replaceme.core.errors import ReplaceMeError


def test_room_is_reserved_on_one_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with disk.reserving(tmp_path / "a" / "b", 60, "rows", "free some"):
        assert disk.free_space(tmp_path) == 40
        with pytest.raises(ReplaceMeError, match=r"c: rows need .* are free; free some"):
            disk.check_room(tmp_path / "c", 41, "rows", "free some")
        elsewhere = SimpleNamespace(stat=lambda: SimpleNamespace(st_dev=-1))
        with monkeypatch.context() as other:
            other.setattr(disk, "existing", lambda folder: elsewhere)
            disk.check_room(tmp_path / "c", 100, "states", "free some")
    assert disk.free_space(tmp_path) == 100
