"""A rank that is connected to the manager, and who starts and fences ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trainsys.elastic.links import Absent, Link
from trainsys.elastic.messages import Hello


class Launcher(Protocol):
    """Starts and fences rank processes."""

    def spawn(self, rank: int, node: int) -> None: ...

    def kill(self, rank: int) -> None: ...

    def ended(self) -> Sequence[int]:
        """Ranks whose process has ended, those that had connected among them."""

    def room(self) -> Sequence[int]:
        """Nodes in which a fresh rank may be started, since they have joined; each is said once per rank."""


@dataclass
class Member:
    rank: int
    node: int
    pid: int
    link: Link | Absent


def mismatch(hello: Hello, prints: tuple[str, str]) -> str:
    """Why a rank may not take part in a run with these `prints`, in words; empty where it may."""
    for what, mine, its in zip(("version of the code", "config"), prints, hello.prints, strict=True):
        if mine != its:
            return f"has another {what}: {its}, the run's is {mine}; start it from the same files"
    return ""
