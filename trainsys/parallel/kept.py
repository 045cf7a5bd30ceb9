"""What autograd keeps of one microbatch on one stage: counted, moved to the host by an action, and brought back.

Where `parallel/offload.py` copies inside the forward, here OFFLOAD and RELOAD begin copies that run beside the
computation; whoever needs a tensor waits for it. Copies have the same bits, so a step has too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from trainsys.parallel.own_stream import on_own_stream


class Copier:
    """One thread per direction, so that copies run in the order of their actions, out and back at the same time.

    ``back(work, gone)`` waits for the copy that took away what it brings.

    Args:
        device: from which they go out.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._out, self._back = (ThreadPoolExecutor(1, f"copies-{way}") for way in ("out", "back"))

    def out(self, work: Callable[[], None]) -> Future[None]:
        return self._out.submit(on_own_stream, self._device, work)

    def back(self, work: Callable[[], None], gone: Future[None]) -> Future[None]:
        return self._back.submit(on_own_stream, self._device, work, gone)


class Kept:
    """The tensors saved in one forward, and the inputs of its parts. What shares memory moves together."""

    def __init__(self) -> None:
        self._memory: dict[int, _Memory] = {}  # by the storage's address, which is taken while it is held
        self._inputs: list[Tensor] = []
        self._moving: Future[None] | None = None

    def saving(self, input: Tensor | None, weights: Iterable[Tensor]) -> AbstractContextManager[object]:
        """A context for the forward of one part.

        Args:
            input: it counts and moves as well; None at the first stage.
            weights: whole for the moment; they are not activations and stay.
        """
        own = {weight.untyped_storage().data_ptr() for weight in weights}
        if input is not None:
            self._inputs.append(input)

        def pack(tensor: Tensor) -> Tensor | _Saved:
            storage = tensor.untyped_storage()
            if storage.data_ptr() in own or not tensor.numel():
                return tensor
            memory = self._memory.setdefault(storage.data_ptr(), _Memory(storage))
            return _Saved(self, memory, tensor)

        return torch.autograd.graph.saved_tensors_hooks(pack, _unpack)

    @property
    def nbytes(self) -> int:
        """On the device."""
        alone = [x for x in self._inputs if x.untyped_storage().data_ptr() not in self._memory]
        return resident(alone) + sum(memory.nbytes for memory in self._memory.values())

    def offload(self, copier: Copier) -> None:
        """Begin to copy everything to the host; the device's memory is free once it is there."""
        self._moving = copier.out(self._leave)

    def reload(self, copier: Copier) -> None:
        """Begin to copy everything back."""
        assert self._moving is not None
        self._moving = copier.back(self._return, self._moving)

    def arrive(self) -> None:
        """Wait for the copies under way; an error in one is raised here."""
        if self._moving is not None:
            moving, self._moving = self._moving, None
            moving.result()

    def release(self) -> None:
        """Leave the tensors to autograd, which drops each after its use."""
        self._memory.clear()
        self._inputs.clear()

    def _leave(self) -> None:
        for memory in self._memory.values():
            memory.leave()
        for x in self._inputs:
            x.untyped_storage().resize_(0)  # autograd still hangs its gradient on it, nobody reads it

    def _return(self) -> None:
        for memory in self._memory.values():
            memory.back()


class _Memory:
    """One storage, on the device or on the host."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage: torch.UntypedStorage | None = storage
        self._host: Tensor | None = None
        self._device = storage.device

    @property
    def nbytes(self) -> int:
        return self.storage.nbytes() if self.storage is not None else 0

    def leave(self) -> None:
        assert self.storage is not None
        pinned = self._device.type == "cuda"
        here = torch.empty(0, dtype=torch.uint8, device=self._device).set_(self.storage)
        self._host = torch.empty(here.shape, dtype=torch.uint8, pin_memory=pinned).copy_(here)
        self.storage = None

    def back(self) -> None:
        assert self._host is not None
        here = torch.empty(self._host.shape, dtype=torch.uint8, device=self._device).copy_(self._host)
        self.storage, self._host = here.untyped_storage(), None


class _Saved:
    """One tensor in its memory."""

    def __init__(self, kept: Kept, memory: _Memory, tensor: Tensor) -> None:
        self._kept, self._memory = kept, memory
        self._empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        self._place = (tensor.storage_offset(), tensor.shape, tensor.stride())

    def tensor(self) -> Tensor:
        self._kept.arrive()
        assert self._memory.storage is not None, "a backward needs what is still on the host"
        return self._empty.set_(self._memory.storage, *self._place)


def _unpack(saved: Tensor | _Saved) -> Tensor:
    return saved if isinstance(saved, Tensor) else saved.tensor()


def resident(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind `tensors`, each once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
