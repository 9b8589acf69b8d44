"""The rooms of the package: nothing imports a later room, nothing in a circle, and what they are is written down."""

import tomllib
from graphlib import CycleError, TopologicalSorter

import pytest
import rooms


def test_every_module_lies_in_a_room():
    assert {rooms.room_of(module) for module in rooms.modules()} == set(rooms.ROOMS)


def test_no_room_imports_a_later_one():
    order = {room: number for number, room in enumerate(rooms.ROOMS)}
    upward = [pair for pair in rooms.imports() if order[rooms.room_of(pair[0])] < order[rooms.room_of(pair[1])]]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: set() for module in rooms.modules()}
    for module, other in rooms.imports():
        graph[module].add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_rooms_are_empty_but_for_their_files():
    """Names are imported where they are defined: an `__init__` that offers them would import the whole room."""
    filled = {path.parent.name for path in rooms.PACKAGE.glob("*/__init__.py") if "import" in path.read_text()}
    assert filled == set()


def test_the_readme_names_every_room():
    readme = (rooms.ROOT / "README.md").read_text()
    folders = [room for room in rooms.ROOMS if (rooms.PACKAGE / room).is_dir()]
    assert [room for room in folders if f"`{room}`" not in readme] == []


def test_every_room_is_installed():
    packages = tomllib.loads((rooms.ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.name for path in rooms.PACKAGE.glob("*/__init__.py")} | {"kernels"}
    assert set(packages) == {"replaceme"} | {f"replaceme.{folder}" for folder in folders}
