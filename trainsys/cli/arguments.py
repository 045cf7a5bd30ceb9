"""What all verbs share: a parser whose errors are one line, lists in flags, and the screen."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from math import inf
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.console import Console


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong argument is a `ValueError`, which `main` prints as one line."""

    def __init__(self, verb: str, description: str, examples: str) -> None:
        super().__init__(
            prog=f"trainsys {verb}",
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")

    def add_config(self, needed: bool = True) -> None:
        """CONFIG… and key=value, which `trainsys.config.load` takes apart."""
        self.add_argument(
            "config",
            nargs="+" if needed else "*",
            metavar="CONFIG|key=value",
            help="YAML files, then overrides such as train.steps=100",
        )

    def add_json(self, what: str) -> None:
        self.add_argument("--json", action="store_true", help=f"print {what} as JSON on stdout, all else on stderr")


def screen(stderr: bool = False) -> Console:
    """The console of a verb: stdout, or stderr when stdout carries JSON."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def at_least(flag: str, value: int, least: int = 1) -> int:
    """`value`, unless it is below `least`. Raises ValueError naming the flag."""
    if value < least:
        raise ValueError(f"{flag} {value} must be at least {least}")
    return value


def positive(flag: str, value: float) -> float:
    """`value`, if it is above 0 and finite. Raises ValueError naming the flag."""
    if not 0 < value < inf:
        raise ValueError(f"{flag} {value:g} must be positive and finite")
    return value


def whole_numbers(flag: str, text: str, least: int = 1) -> list[int]:
    """A list such as ``4,8``. Raises ValueError naming the flag."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) >= least for part in parts):
        raise ValueError(f"{flag} {text} must be whole numbers from {least} on, separated by commas")
    return [int(part) for part in parts]


def among(flag: str, text: str, known: Collection[str]) -> list[str]:
    """Names such as ``ring,tasp``; none of an empty text. Raises ValueError naming the flag and what there is."""
    names = [part for part in text.split(",") if part]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{flag} {unknown[0]} is unknown; there are {', '.join(known)}")
    return names
