"""Launch arguments as a shell array in a file to be sourced."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from trainsys.config import RunConfig


def shell_array(name: str, groups: Sequence[tuple[str, Sequence[str]]], comments: Sequence[str]) -> str:
    """`comments`, then ``name=( … )`` with one commented line per group of arguments.

    Args:
        groups: (title, flags and values in order); empty ones are left out.
    """
    lines = [f"# {comment}" for comment in comments]
    lines.append(f"{name}=(")
    for title, words in groups:
        if words:
            lines += [f"  # {title}", f"  {shlex.join(words)}"]
    return "\n".join([*lines, ")", ""])


def torchrun(config: RunConfig) -> str:
    """How many processes to start where."""
    cluster = config.cluster
    several = f"--nnodes {cluster.nodes} " if cluster.nodes > 1 else ""
    return f"torchrun {several}--nproc-per-node {cluster.ranks_per_node}"


def number(value: float) -> str:
    """Without an exponent where a reader expects none: 0.0003, 1e-08."""
    return f"{value:g}"
