"""Every import between the rooms is one that ARCHITECTURE.md allows."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = ("recipes", "quantization", "plugins", "passes", "compiler", "runtime")


def allowed_imports(page: str) -> dict[str, set[str]]:
    """The rooms' table and the line on the core below it: room -> modules and packages that it may import."""
    (names,) = re.findall(r"^core = `compiler\.\{(.*?)\}`", page, re.M)
    core = {f"compiler.{name}" for name in names.split(", ")}
    rows = re.findall(r"^\| `([\w/]+)/` \| `slipway\.[\w.]+` \|.*\| (.*?) \|$", page, re.M)
    return {room: {room, *re.findall(r"`([\w.]+)`", cell)} | (core if cell.startswith("core") else set()) for room, cell in rows}


ALLOWED = allowed_imports((ROOT / "ARCHITECTURE.md").read_text())
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: pathlib.Path) -> set[str]:
    """Modules of ours that a file imports, without `slipway.`"""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("slipway.") for name in found if name.startswith("slipway.")}


def room_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "compiler/cli" if parts[:2] == ("compiler", "cli") else parts[0]


def test_every_room_has_its_row():
    assert ALLOWED.keys() == {*ROOMS, "compiler/cli"}
    assert ALLOWED["runtime"] == {"runtime"} and ALLOWED["quantization"] == {"quantization", "compiler.errors"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stay_within_the_table(path):
    allowed = ALLOWED[room_of(path)]
    outside = {name for name in imports(path) if not any(name == room or name.startswith(f"{room}.") for room in allowed)}
    assert not outside


def test_bare_imports_of_rooms_are_not_used():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & set(ROOMS), path


def test_packages_say_nothing():
    """compiler/cli is the one package with contents: its main() is the console script."""
    full = [path for path in FILES if path.name == "__init__.py" and path.read_text().strip() and path.parent.name != "cli"]
    assert not full


def test_the_top_level_is_what_readme_says():
    import subprocess

    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        return  # an unpacked archive has no index to look at
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    assert top <= {"compiler", "passes", "plugins", "quantization", "runtime", "recipes", "tests", "pyproject.toml", "Makefile",
                   "README.md", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", ".ci", ".gitignore"}  # fmt: skip
