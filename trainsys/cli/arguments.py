"""What all verbs share: a parser whose errors are one line, and the screen."""

from __future__ import annotations

import argparse
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
