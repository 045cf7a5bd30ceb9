"""The house around the code: sizes, links, banned imports, and documents that say what is there."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "trainsys").rglob("*.py"))
PROSE = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PROSE += sorted((ROOT / "docs").glob("*.md"))


def functions() -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield f"{path.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1


def test_files_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: n for name, n in lines.items() if n > 500} == {}


def test_functions_are_short() -> None:
    sizes = dict(functions())
    assert {name: n for name, n in sizes.items() if n > 120} == {}
    long = {name: n for name, n in sizes.items() if n > 60}
    assert len(long) <= 0.04 * len(sizes), long


def test_public_functions_say_what_they_return() -> None:
    missing = [
        f"{path.relative_to(ROOT)}:{node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.returns is None
    ]
    assert missing == []


@pytest.mark.parametrize("name", ["parallel", "comm", "elastic"])
def test_links_at_the_top_point_into_the_package(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"trainsys/{name}"
    assert link.is_dir()


def test_comm_has_no_init_file() -> None:
    # with one, plain `python` in the root would import our comm where Jupyter's is meant
    assert not (ROOT / "trainsys" / "comm" / "__init__.py").exists()


@pytest.mark.parametrize("name", ["comm", "parallel", "elastic"])
def test_bare_imports_are_banned(name: str) -> None:
    source = f"import {name}\n\nprint({name})\n"
    command = [sys.executable, "-m", "ruff", "check", "--output-format=concise", "--stdin-filename=trainsys/x.py", "-"]
    done = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True)
    assert "TID251" in done.stdout, done.stdout + done.stderr


def test_docs_config_is_up_to_date() -> None:
    generator = module(ROOT / "docs" / "generate_config.py")
    text = generator.render(generator.SOURCE.read_text())
    assert generator.TARGET.read_text() == text, "run: python docs/generate_config.py"
    bare = [line for line in text.splitlines() if line.endswith("|  |")]
    assert bare == [], "a key without a comment in trainsys/config.py"


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_documents_name_real_targets_and_verbs() -> None:
    from trainsys.cli.main import VERBS

    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in PROSE:
        code = "\n".join(re.findall(r"`[^`\n]+`|^    [^\n]*$|^```.*?^```", path.read_text(), re.MULTILINE | re.DOTALL))
        assert set(re.findall(r"\bmake ([a-z]+)", code)) <= targets, path
        called = {
            a or b for a, b in re.findall(r"^\s*(?:\.venv/bin/)?trainsys ([a-z]+)|`trainsys ([a-z]+)", code, re.M)
        }
        assert called <= set(VERBS), path
        benches = {name.replace("-", "_") for name in re.findall(r"trainsys bench ([a-z0-9-]+)", code)}
        assert benches <= {f.stem for f in (ROOT / "benchmarks").glob("*.py")}, path


def test_files_named_in_documents_exist() -> None:
    places = [ROOT, ROOT / "trainsys", ROOT / "docs"]
    for path in PROSE:
        text = path.read_text()
        names = set(re.findall(r"\]\(([^)#:]+)\)", text))
        names |= set(re.findall(r"`((?:[a-z_0-9-]+/)+[a-z_0-9-]+\.(?:py|md|yaml|toml))`", text))
        gone = [n for n in names if not any((place / n).exists() for place in [*places, path.parent])]
        assert [n for n in gone if not n.startswith(("runs/", "run_dir/"))] == [], path


def test_pins_cover_the_declared_dependencies() -> None:
    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pinned = {
        normal(line.partition("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["dev"]
    wanted += project["build-system"]["requires"]
    assert {normal(re.split(r"[<>=!~ \[]", name)[0]) for name in wanted} <= pinned
