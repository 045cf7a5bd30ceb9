"""What is said to users names every knob by its section, as they must write it."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from trainsys.config import RunConfig

PACKAGE = Path(__file__).parents[1] / "trainsys"
SECTIONS = [
    part.name for part in dataclasses.fields(RunConfig) if dataclasses.is_dataclass(getattr(RunConfig(), part.name))
]
KNOBS = {key.name for name in SECTIONS for key in dataclasses.fields(getattr(RunConfig(), name))}
BARE = re.compile(rf"(?<![\w.*·])({'|'.join(sorted(KNOBS, key=len, reverse=True))})=")
PLAIN_NUMBERS = {"fused.py", "generation.py"}  # functions of a tp that is no run's setting
VERBS_OWN = {"simulate.py", "simulate_all.py", "alternatives.py"}  # trainsys simulate takes schedule=all by itself
OWN = re.compile(r"(?<![\w.*·])schedule=")
ROWS = {"perf", "validate"}  # speak of measurements' columns


def texts(source: str) -> Iterator[str]:
    """The string literals of a module but its docstrings; what an f-string fills in as {}."""
    tree = ast.parse(source)
    skipped = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    skipped |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def test_no_knob_without_its_section() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name not in PLAIN_NUMBERS and path.parent.name not in ROWS
        for text in texts(path.read_text())
        if BARE.search(OWN.sub("", text) if path.name in VERBS_OWN else text)
    ]
    assert found == []


def test_a_bare_knob_would_be_found() -> None:
    bad = "raise ValueError(f'{a} is odd; set tp={b}')"
    assert [text for text in texts(bad) if BARE.search(text)] == ["{} is odd; set tp={}"]
    assert not [text for text in texts(bad.replace("tp=", "parallel.tp=")) if BARE.search(text)]
