"""What autograd keeps for the backward, kept by the host instead of the device.

A saved tensor is copied to the host as it is saved, and back when its backward asks for it; weights stay where they
are. Where the device is the host the copy is made all the same. Copies have the same bits, so a step has too.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_Key = tuple[Any, ...]  # storage, offset, shape, strides and version


class HostCopies:
    """Hooks for one stage's forwards.

    Args:
        weights: parameters of the stage, which are not activations.

    Attributes:
        moved_bytes: copied to the host so far.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.weights = list(weights)
        self.moved_bytes = 0

    def saving(self) -> AbstractContextManager[object]:
        """A context for a forward: what it saves goes to the host, each tensor once."""
        own = {weight.untyped_storage().data_ptr() for weight in self.weights}  # under ZeRO 3 whole only now
        seen: dict[_Key, tuple[StorageWeakRef, _HostCopy]] = {}

        def pack(tensor: Tensor) -> Tensor | _HostCopy:
            storage = tensor.untyped_storage()
            if storage.data_ptr() in own or not tensor.numel():
                return tensor
            alive = StorageWeakRef(storage)  # while it is held, no other storage has its address
            key = (alive.cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor._version)
            if key not in seen or seen[key][0].expired():
                seen[key] = alive, _HostCopy(tensor)
                self.moved_bytes += tensor.numel() * tensor.element_size()
            return seen[key][1]

        return torch.autograd.graph.saved_tensors_hooks(pack, _unpack)


def emptied(x: Tensor | None) -> Tensor | None:
    """An input after its forward: autograd still hangs its gradient on it, nobody reads it."""
    if x is not None:
        x.untyped_storage().resize_(0)
    return x


class _HostCopy:
    """One tensor in the host's memory, and while somebody uses it again the one on the device."""

    def __init__(self, tensor: Tensor) -> None:
        pinned = tensor.device.type == "cuda"
        self.device = tensor.device
        self.host = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu", pin_memory=pinned
        )
        self.host.copy_(tensor.detach())
        self.back: ref[Tensor] | None = None

    def load(self) -> Tensor:
        again = self.back() if self.back is not None else None
        if again is None:
            again = torch.empty_strided(
                self.host.shape, self.host.stride(), dtype=self.host.dtype, device=self.device
            ).copy_(self.host)
            self.back = ref(again)
        return again


def _unpack(saved: Tensor | _HostCopy) -> Tensor:
    return saved.load() if isinstance(saved, _HostCopy) else saved
