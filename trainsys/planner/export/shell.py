"""Launch arguments as a shell array in a file to be sourced."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from trainsys.config import RunConfig


def shell_array(
    name: str,
    groups: Sequence[tuple[str, Sequence[str]]],
    comments: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> str:
    """`comments`, what to export, then ``name=( … )`` with one argument per line, in commented groups.

    Args:
        groups: (title, flags and values in order); empty ones are left out.
    """
    lines = [f"# {comment}" for comment in comments]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in (environment or {}).items()]
    lines.append(f"{name}=(")
    for title, words in groups:
        if words:
            lines += [f"  # {title}", *(f"  {line}" for line in _lines(words))]
    return "\n".join([*lines, ")", ""])


def _lines(words: Sequence[str]) -> list[str]:
    """A flag and its values per line."""
    lines: list[str] = []
    for word in words:
        if word.startswith("--") or not lines:
            lines.append(shlex.quote(word))
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return lines


def torchrun(config: RunConfig) -> str:
    """How many processes to start where."""
    cluster = config.cluster
    several = f"--nnodes {cluster.nodes} " if cluster.nodes > 1 else ""
    return f"torchrun {several}--nproc-per-node {cluster.ranks_per_node}"


def number(value: float) -> str:
    """Without an exponent where a reader expects none: 0.0003, 1e-08."""
    return f"{value:g}"
