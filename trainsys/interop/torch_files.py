"""Files of ``torch.save``, read without running what they name and without loading what nobody asks for.

Such a file is a zip archive: one pickle, and one uncompressed record per storage. The pickle is read by an unpickler
that makes tensors and plain containers only; any other class in it becomes an inert object that keeps its arguments.
Records are mapped, and a box of a tensor costs its own bytes. A record's CRC is verified when it is first read.
"""

from __future__ import annotations

import io
import mmap
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainsys.space.box import Box

_BLOCK = 1 << 20


class Mapped:
    """A file mapped privately. Raises ValueError, one line, where it cannot be.

    Attributes:
        sure: its bytes are known to be right, so that records need not be verified again.
    """

    def __init__(self, path: Path, sure: bool = False) -> None:
        self.path, self.sure = path, sure
        try:
            with path.open("rb") as stream:
                self.map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants writable buffers
        except FileNotFoundError:
            raise ValueError(f"{path} is missing") from None
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise ValueError(f"{path} cannot be read: {error}") from None
        self.bytes = torch.frombuffer(self.map, dtype=torch.uint8)


class Record:
    """One storage of an archive: bytes [start, start + size) of a file."""

    def __init__(self, file: Mapped, start: int, size: int, crc: int, what: str) -> None:
        self.file, self.start, self.size, self._crc, self._what = file, start, size, crc, what
        self._sure = file.sure

    def bytes(self) -> Tensor:
        """The mapped bytes [size], verified once. Raises ValueError."""
        if not self._sure:
            value = 0
            for at in range(self.start, self.start + self.size, _BLOCK):
                value = zlib.crc32(self.file.map[at : min(at + _BLOCK, self.start + self.size)], value)
            if value != self._crc:
                raise ValueError(f"{self.file.path} is damaged: {self._what} does not match its checksum")
            self._sure = True
        return self.file.bytes[self.start : self.start + self.size]


class StoredTensor:
    """A tensor in a file. `offset` and `stride` count elements of the record."""

    def __init__(
        self, record: Record, dtype: torch.dtype, offset: int, shape: Sequence[int], stride: Sequence[int]
    ) -> None:
        self.dtype, self.shape = dtype, tuple(shape)
        self._record, self._offset, self._stride = record, offset, tuple(stride)

    @property
    def numel(self) -> int:
        return Box.whole(self.shape).numel

    def read(self, box: Box | None = None) -> Tensor:
        """A copy of one box, or of everything."""
        box = box or Box.whole(self.shape)
        size = self.dtype.itemsize  # as bytes: a record inside a larger file may lie at any address
        shape, stride = (*self.shape, size), (*(s * size for s in self._stride), 1)
        view = torch.as_strided(self._record.bytes(), shape, stride, self._offset_in_bytes())
        part = view[box.within(Box.whole(self.shape))].clone(memory_format=torch.contiguous_format)
        return part.view(self.dtype).squeeze(-1)

    def run(self, start: int, box: Box) -> StoredTensor:
        """Elements [start, start + box.numel) of a 1-d tensor, in the shape of `box`."""
        assert len(self.shape) == 1 and self._stride == (1,) and start + box.numel <= self.shape[0]
        stride = [Box.whole(box.shape[d + 1 :]).numel for d in range(len(box.shape))]
        return StoredTensor(self._record, self.dtype, self._offset + start, box.shape, stride)

    def _offset_in_bytes(self) -> int:
        # as_strided counts from the beginning of the storage, which is the whole file
        return self._record.start + self._offset * self.dtype.itemsize


class Inert:
    """What stands for an object of a class that is not ours to run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.__dict__.update(kwargs)

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__.setdefault("items", {})[key] = value

    def append(self, value: Any) -> None:
        self.__dict__.setdefault("values", []).append(value)

    def extend(self, values: Any) -> None:
        self.__dict__.setdefault("values", []).extend(values)


def load_lazily(file: Mapped, start: int = 0, length: int | None = None) -> Any:
    """The object in the archive at bytes [start, start + length) of a file, its tensors as `StoredTensor`.

    Raises:
        ValueError: one line, for a file that is cut short, damaged or something else.
    """
    length = file.bytes.numel() - start if length is None else length
    if start + length > file.bytes.numel():
        raise ValueError(f"{file.path} is cut short: {file.bytes.numel()} bytes, needs {start + length}")
    try:
        with zipfile.ZipFile(_Window(file.map, start, length)) as archive:
            records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            code = archive.read(records["data.pkl"])
    except (zipfile.BadZipFile, KeyError, EOFError, OSError) as error:
        raise ValueError(f"{file.path} is damaged or no file of torch.save: {' '.join(str(error).split())}") from None

    def record(key: str) -> Record:
        info = records[f"data/{key}"]
        head = start + info.header_offset
        names = int.from_bytes(file.map[head + 26 : head + 28], "little")
        extra = int.from_bytes(file.map[head + 28 : head + 30], "little")
        return Record(file, head + 30 + names + extra, info.file_size, info.CRC, info.filename)

    return unpickle(code, file.path, record)


def unpickle(code: bytes, path: Path, record: Any = None) -> Any:
    """Tensors and plain containers of a pickle. Raises ValueError when it cannot be read."""
    unpickler = _Unpickler(io.BytesIO(code))
    unpickler.record = record
    try:
        return unpickler.load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {' '.join(str(error).split())}") from None


class _Window(io.RawIOBase):
    """Bytes [start, start + length) of a mapped file, as a file."""

    def __init__(self, data: mmap.mmap, start: int, length: int) -> None:
        self._data, self._start, self._length, self._at = data, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._length if size < 0 else min(self._length, self._at + size)
        found = self._data[self._start + self._at : self._start + stop] if stop > self._at else b""
        self._at += len(found)
        return found


def _rebuild(storage: tuple[Record, torch.dtype], offset: int, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    record, dtype = storage
    return StoredTensor(record, dtype, offset, tuple(size), tuple(stride))


_MAKERS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "torch._tensor._rebuild_from_type_v2": lambda make, kind, args, state: make(*args),
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch.serialization._get_layout": Inert,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
}
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    record: Any = None

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch.distributed.checkpoint.metadata" or (module, name) == (
            "torch.distributed.checkpoint.filesystem",
            "_StorageInfo",
        ):
            return super().find_class(module, name)
        return _MAKERS.get(f"{module}.{name}", Inert)

    def persistent_load(self, saved: Any) -> tuple[Record, torch.dtype]:
        kind, dtype, key, _, _ = saved
        assert kind == "storage" and isinstance(dtype, torch.dtype), saved
        return self.record(key), dtype
