"""Small Python objects between ranks of one group (never from outside it: they are pickled)."""

from __future__ import annotations

import pickle
from typing import Any

import torch

from trainsys.comm.group import Group

_TAG = 1 << 24  # apart from tensor traffic


def gather_objects(group: Group | None, value: Any) -> list[Any] | None:
    """Everybody's `value` in group order, on the group's first rank; None elsewhere."""
    if group is None:
        return [value]
    if group.rank != group.ranks[0]:
        _send(group, value, group.ranks[0])
        return None
    return [value] + [_receive(group, peer) for peer in group.ranks[1:]]


def broadcast_object(group: Group | None, value: Any) -> Any:
    """The first rank's `value`, on every rank."""
    if group is None:
        return value
    if group.rank != group.ranks[0]:
        return _receive(group, group.ranks[0])
    for peer in group.ranks[1:]:
        _send(group, value, peer)
    return value


def _send(group: Group, value: Any, peer: int) -> None:
    data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    group.wait(group.isend(torch.tensor([data.numel()]), peer, _TAG))
    group.wait(group.isend(data, peer, _TAG + 1))


def _receive(group: Group, peer: int) -> Any:
    size = torch.zeros(1, dtype=torch.int64)
    group.wait(group.irecv(size, peer, _TAG))
    data = torch.empty(int(size.item()), dtype=torch.uint8)
    group.wait(group.irecv(data, peer, _TAG + 1))
    return pickle.loads(data.numpy().tobytes())
