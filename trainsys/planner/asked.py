"""The words in which one asks for a layout: ``tp8,pp4``, or one line of a plan, ``dp8·tp2·pp2[15,17] zero1 sp mb2``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainsys.config import ParallelConfig
from trainsys.planner.check import check_degrees
from trainsys.planner.enumerate import SEARCHED
from trainsys.schedule import GENERATORS

SIZE, PLACED = "microbatch_size", "placed"  # asked for, but no keys of ``config.parallel``
_NUMBERS = ("dp", "tp", "pp", "cp", "ep", "vp", "zero", "mb")
_WORDS: dict[str, tuple[str, Any]] = {
    "sp": ("sequence_parallel", True),
    "nosp": ("sequence_parallel", False),
    "recompute": ("recompute", "full"),
    "recompute-stage": ("recompute", "stage"),
    "norecompute": ("recompute", "none"),
    "offload": ("offload", "activations"),
    "offload-scheduled": ("offload", "scheduled"),
    "nooffload": ("offload", "none"),
    "placed": (PLACED, True),
    **{name: ("schedule", name) for name in GENERATORS},
}
_LIST = re.compile(r"\b(dp|pp(\d{1,9}))\[([^\]]*)\]")  # dp[1×3,2], pp2[4,3,4×4,5,4]
_MOST = 1 << 16  # numbers in a list


def parse_asked(text: str) -> dict[str, Any]:
    """Keys of ``config.parallel`` with the values that `text` names; what it does not name is free.

    Besides them `SIZE`, as in ``mb4``, and `PLACED`. A list of layers or replicas, as in ``pp2[15,17]``, is of each run
    of layers; ``1×3`` (or ``1x3``) counts equal ones.

    Raises:
        ValueError: for a word that names nothing, a degree that no layout has, a key named twice, or nothing at all.
    """
    found: dict[str, Any] = {}
    for key, value in [*_lists(text), *map(_word, filter(None, re.split(r"[\s,·+]+", _LIST.sub(" ", text))))]:
        if key in found and found[key] != value:
            raise ValueError(f"why={text} names {key} twice: {found[key]} and {value}")
        found[key] = value
    if not found:
        raise ValueError("why= names no layout; write degrees such as why=tp8,pp4")
    replicas, layers = found.get("stage_replicas", ()), found.get("stage_layers", ())
    if replicas:
        found.setdefault("pp", len(replicas))
    if layers and found["pp"] and len(layers) % found["pp"] == 0:
        found.setdefault("vp", len(layers) // found["pp"])
    keys = {key: value for key, value in found.items() if key not in (SIZE, PLACED)}
    try:
        check_degrees(replace(ParallelConfig(), **keys))
    except ValueError as error:
        raise ValueError(f"why={text}: {error}") from None
    return found


def _lists(text: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for whole in _LIST.finditer(text):
        numbers: list[int] = []
        for part in whole[3].split(","):
            entry = re.fullmatch(r"\s*(\d{1,9})(?:\s*[×x]\s*(\d{1,4}))?\s*", part)
            if not entry or len(numbers) > _MOST:
                raise ValueError(f"why={whole[0]}: {part!r} is no number of a list such as pp2[4,3] or pp8[1,2×6,1]")
            numbers += [int(entry[1])] * int(entry[2] or 1)
        found += [("pp", int(whole[2]))] if whole[2] else []
        found.append(("stage_layers" if whole[2] else "stage_replicas", tuple(numbers)))
    return found


def _word(word: str) -> tuple[str, Any]:
    word = word.removeprefix("parallel.").removeprefix("batch.")
    number = re.fullmatch(rf"({'|'.join(_NUMBERS)}|{SIZE}(?==))=?(\d{{1,9}})", word)
    if number and number[1] in ("mb", SIZE):
        if not int(number[2]):
            raise ValueError(f"why={word}: a microbatch has at least 1 sequence; write mb1 or more")
        return SIZE, int(number[2])
    if number:
        return number[1], int(number[2])
    key, equals, value = word.partition("=")
    if equals and key in SEARCHED:
        chosen = {"true": True, "false": False}.get(value, value) if key == "sequence_parallel" else value
        if key not in _NUMBERS and isinstance(chosen, bool) == (key == "sequence_parallel"):
            return key, chosen
    if word in _WORDS:
        return _WORDS[word]
    raise ValueError(
        f"why={word} names no part of a layout; write degrees such as why=tp8,pp4 "
        f"({', '.join(f'{name}N' for name in _NUMBERS)}) and words of {', '.join(_WORDS)}"
    )


def said(asked: Mapping[str, Any]) -> str:
    """`asked` in the words of the command line."""
    words = {SIZE: f"batch.{SIZE}"}
    return " ".join(
        PLACED if key == PLACED else f"{words.get(key, f'parallel.{key}')}={_text(value)}"
        for key, value in asked.items()
    )


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
