"""``cluster.other_devices``: what YAML says of them, made whole by the cluster's own device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainsys.config import DeviceConfig, OtherDevices

if TYPE_CHECKING:
    from trainsys.config import ClusterConfig

_EXAMPLE = "[{nodes: 1, device: {name: a100-80gb-sxm}}]"


def other_devices(entries: Sequence[Any], device: DeviceConfig) -> tuple[OtherDevices, ...]:
    """Entries with all keys, those left out from `device`.

    Raises:
        ValueError: one line for what is not such a list, an unknown key or a wrong type.
    """
    if isinstance(entries, str | Mapping):
        raise ValueError(f"cluster.other_devices must be a list, such as {_EXAMPLE}")
    return tuple(_entry(f"cluster.other_devices[{i}]", entry, device) for i, entry in enumerate(entries))


def _entry(name: str, entry: Any, device: DeviceConfig) -> OtherDevices:
    if isinstance(entry, OtherDevices):
        return entry
    if not isinstance(entry, Mapping) or set(entry) != {"nodes", "device"} or not isinstance(entry["device"], Mapping):
        raise ValueError(f"{name} must have nodes and device and nothing else, such as {_EXAMPLE}")
    nodes = entry["nodes"]
    if not isinstance(nodes, int) or isinstance(nodes, bool):
        raise ValueError(f"{name}.nodes={nodes} must be a whole number")
    known = {part.name: type(getattr(device, part.name)) for part in dataclasses.fields(DeviceConfig)}
    given: dict[str, Any] = {}
    for key, value in entry["device"].items():
        if key not in known:
            raise ValueError(f"{name}.device.{key} is unknown; a device has {', '.join(known)}")
        try:
            given[key] = known[key](value)
        except (TypeError, ValueError):
            raise ValueError(f"{name}.device.{key}={value} must be a number") from None
    return OtherDevices(nodes, dataclasses.replace(device, **given))


def check_other_devices(cluster: ClusterConfig) -> None:
    """Whether the cluster can have its ``other_devices``.

    Raises:
        ValueError: one line for no nodes, all of them or more, several backends, or cores shared by different devices.
    """
    others: tuple[OtherDevices, ...] = cluster.other_devices
    for i, other in enumerate(others):
        if other.nodes < 1:
            raise ValueError(f"cluster.other_devices[{i}].nodes={other.nodes} must be at least 1")
        if other.device.backend != cluster.device.backend:
            raise ValueError(
                f"cluster.other_devices[{i}].device.backend={other.device.backend} but "
                f"cluster.device.backend={cluster.device.backend}; all ranks need the same"
            )
    total = sum(other.nodes for other in others)
    if others and total >= cluster.nodes:
        raise ValueError(
            f"cluster.other_devices has {total} nodes but cluster.nodes={cluster.nodes} in all, of which one at least "
            "has cluster.device; raise cluster.nodes"
        )
    if others and cluster.shared_cores:
        raise ValueError(
            "cluster.shared_cores=true means one machine, whose ranks are alike; leave cluster.other_devices out"
        )
