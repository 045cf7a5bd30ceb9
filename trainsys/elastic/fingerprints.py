"""Names for the code and the config of a process: ranks that differ in either would train something else together."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import trainsys.config
from trainsys.config import RunConfig

_LENGTH = 12


@cache
def code_print() -> str:
    """Of all source files of the package."""
    mixed = hashlib.sha256()
    root = Path(trainsys.config.__file__).parent
    for path in sorted(root.rglob("*.py")):
        mixed.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return mixed.hexdigest()[:_LENGTH]


def config_print(config: RunConfig) -> str:
    """Of all settings but where a run writes."""
    plain = replace(config, run_dir="", checkpoint=replace(config.checkpoint, dir=""))
    return hashlib.sha256(json.dumps(asdict(plain), sort_keys=True).encode()).hexdigest()[:_LENGTH]
