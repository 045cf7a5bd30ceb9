"""Bytes per element of everything that a rank keeps."""

from __future__ import annotations

from dataclasses import dataclass

from trainsys.config import DType

GIB = 2**30
_BYTES: dict[str, int] = {"float64": 8, "float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Precision:
    """Bytes per element. Gradients, the master copy and the moments are never kept below float32
    (mixed precision training: Micikevicius et al. 2018, arXiv:1710.03740, §3)."""

    parameter: int
    activation: int
    gradient: int
    state: int  # of each of master, first and second moment

    @classmethod
    def of(cls, dtype: DType) -> Precision:
        return _PRECISIONS[dtype]


_PRECISIONS = {name: Precision(size, size, max(4, size), max(4, size)) for name, size in _BYTES.items()}
