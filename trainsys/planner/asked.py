"""The words in which one asks for a layout: ``tp8,pp4``, or one line of a plan, ``dp8·tp2·pp2·vp2 zero1 sp``."""

from __future__ import annotations

import re
from typing import Any

from trainsys.planner.enumerate import SEARCHED
from trainsys.schedule import GENERATORS

_NUMBERS = ("dp", "tp", "pp", "cp", "ep", "vp", "zero")
_WORDS: dict[str, tuple[str, Any]] = {
    "sp": ("sequence_parallel", True),
    "nosp": ("sequence_parallel", False),
    "recompute": ("recompute", "full"),
    "norecompute": ("recompute", "none"),
    "offload": ("offload", "activations"),
    "nooffload": ("offload", "none"),
    **{name: ("schedule", name) for name in GENERATORS},
}


def parse_asked(text: str) -> dict[str, Any]:
    """Keys of ``config.parallel`` with the values that `text` names; what it does not name is free.

    Which layers a stage has, as in ``pp2[15,17]``, is read over: the search splits them.

    Raises:
        ValueError: for a word that names nothing, a key named twice, or nothing at all.
    """
    found: dict[str, Any] = {}
    for word in filter(None, re.split(r"[\s,·+]+", re.sub(r"(?<=\d)\[[\d,]*\]", "", text))):
        key, value = _word(word.removeprefix("parallel."))
        if key in found and found[key] != value:
            raise ValueError(f"why={text} names {key} twice: {found[key]} and {value}")
        found[key] = value
    if not found:
        raise ValueError("why= names no layout; write degrees such as why=tp8,pp4")
    return found


def _word(word: str) -> tuple[str, Any]:
    number = re.fullmatch(rf"({'|'.join(_NUMBERS)})=?(\d{{1,9}})", word)
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
