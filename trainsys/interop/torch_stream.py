"""Write files as ``torch.save`` does, the tensors of which come piece by piece."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

from trainsys.space.box import Box

_STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}
_LARGE = 1 << 30  # from here on a record's header leaves room for 64-bit sizes


@dataclass
class Coming:
    """A tensor whose elements come later, row-major, in `pieces`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Iterator[Tensor]

    @property
    def nbytes(self) -> int:
        return Box.whole(self.shape).numel * self.dtype.itemsize


@dataclass(frozen=True)
class _Storage:
    key: str
    of: Coming


def save_streamed(stream: BinaryIO, value: Any) -> int:
    """Write `value`, plain containers that may hold `Coming` tensors, from the stream's position on.

    Returns:
        Bytes written.

    Raises:
        OSError: of the disk.
    """
    window = _Relative(stream)
    code = io.BytesIO()
    pickler = _Pickler(code, protocol=2)
    pickler.dump(value)
    with zipfile.ZipFile(window, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_named("data.pkl"), code.getvalue())
        archive.writestr(_named("byteorder"), "little")
        for storage in pickler.storages:
            large = storage.of.nbytes >= _LARGE
            with archive.open(_named(f"data/{storage.key}"), "w", force_zip64=large) as record:
                held = 0
                for piece in storage.of.pieces:
                    data = as_bytes(piece.to(storage.of.dtype))
                    held += len(data)
                    record.write(data)
            assert held == storage.of.nbytes, (held, storage)
        archive.writestr(_named("version"), "3\n")
    return window.end


def _named(name: str) -> zipfile.ZipInfo:
    """A record without a time of its own: equal content makes equal files, and equal checksums."""
    return zipfile.ZipInfo(f"archive/{name}")


def as_bytes(values: Tensor) -> memoryview:
    """The row-major bytes of a tensor."""
    raw: Any = values.contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(raw)


class _Pickler(pickle.Pickler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.storages: list[_Storage] = []

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        numel = Box.whole(value.of.shape).numel
        return "storage", _STORAGES[value.of.dtype], value.key, "cpu", numel

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Coming):
            return NotImplemented
        self.storages.append(_Storage(str(len(self.storages)), value))
        stride = tuple(Box.whole(value.shape[d + 1 :]).numel for d in range(len(value.shape)))
        return _rebuild_tensor_v2, (self.storages[-1], 0, value.shape, stride, False, OrderedDict())


class _Relative(io.RawIOBase):
    """A stream whose positions count from where it stood."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._first, self.end = stream, stream.tell(), 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell() - self._first

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset + self._first * (whence == io.SEEK_SET), whence) - self._first

    def write(self, data: Any) -> int:
        count = self._stream.write(data)
        self.end = max(self.end, self.tell())
        return count

    def flush(self) -> None:
        if not self._stream.closed:
            self._stream.flush()
