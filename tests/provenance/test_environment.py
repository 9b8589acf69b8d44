"""The hardware of a measurement is found without asking slow programs more than once."""

import subprocess

from replaceme.provenance import environment


def test_the_driver_is_the_kernels_word_and_nvidia_smi_is_asked_once_without_it(tmp_path, monkeypatch):
    asked = []

    def run(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "570.1\n570.1\n")

    monkeypatch.setattr(environment.subprocess, "run", run)
    (tmp_path / "version").write_text("570.2\n")
    for name, version, times in (("version", "570.2", 0), ("none", "570.1", 1)):
        monkeypatch.setattr(environment, "DRIVER", tmp_path / name)
        environment._driver.cache_clear()
        assert environment._driver() == environment._driver() == version and len(asked) == times
    environment._driver.cache_clear()
