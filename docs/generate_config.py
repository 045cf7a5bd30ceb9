"""Writes docs/config.md from the dataclasses in trainsys/config.py: types, defaults and the comment after each field.

python docs/generate_config.py        tests/test_house.py compares the file with what this would write
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE, TARGET = ROOT / "trainsys" / "config.py", ROOT / "docs" / "config.md"
HEAD = """\
# Configuration

Written by `docs/generate_config.py` from `trainsys/config.py`; edit that file instead.

A run is one YAML file. Values come from three places, later ones win: the defaults below, then YAML files in the order
given, then `key=value` on the command line. A file may start from others with `base:` (a path or a list, relative to
the file). An unknown key or a wrong type is an error that names the key and the nearest known one. The resolved
configuration is written to `run_dir/config.yaml`, which can be given to any verb again.

    trainsys train configs/run/tiny.yaml train.steps=200 parallel.dp=1 parallel.tp=2 run_dir=runs/tp2
"""


def render(source: str) -> str:
    """The whole of docs/config.md."""
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    nodes = ast.parse(source).body
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    names = {
        node.targets[0].id: ast.unparse(node.value)
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    parts = [HEAD]

    def section(cls: ast.ClassDef, prefix: str) -> None:
        about = ast.get_docstring(cls)
        parts.append(
            f"\n## {prefix.rstrip('.') or 'the run'}\n\n" + (f"{' '.join(about.split())}\n\n" if about else "")
        )
        parts.append("| key | type | default | meaning |\n| --- | --- | --- | --- |\n")
        for field in cls.body:
            if isinstance(field, ast.AnnAssign):
                kind = ast.unparse(field.annotation)
                if kind not in classes:
                    cells = (prefix + ast.unparse(field.target), names.get(kind, kind), ast.unparse(field.value))
                    meaning = comments.get(field.lineno, "").replace("|", "\\|")
                    parts.append("| " + " | ".join(f"`{c.replace('|', chr(92) + '|')}`" for c in cells))
                    parts.append(f" | {meaning} |\n")
        for field in cls.body:
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.annotation) in classes:
                section(classes[ast.unparse(field.annotation)], f"{prefix}{ast.unparse(field.target)}.")

    section(classes["RunConfig"], "")
    return "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(render(SOURCE.read_text()))
