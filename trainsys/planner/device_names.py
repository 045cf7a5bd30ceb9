"""A device's name that is nearly one of the catalogue: a slip, whose costs would be another device's."""

from __future__ import annotations

import difflib

from trainsys.config import RunConfig
from trainsys.perf.device import catalogue

_CLOSE = 0.8  # of difflib: one pair of letters swapped in a name of ten


def check_device_names(config: RunConfig) -> None:
    """Whether devices that the catalogue lacks have FLOP/s of their own. With bfloat16 alone it knows costs.

    Of ``cluster.other_devices`` those are inherited that are ``cluster.device``'s; and of that itself, as a YAML file
    declares them beside the name that was meant, those that are the known device's.

    Raises:
        ValueError: one line for a name that is nearly a known one.
    """
    if config.train.dtype != "bfloat16":
        return
    device, known = config.cluster.device, catalogue()
    places = {
        f"cluster.other_devices[{i}].device": other.device for i, other in enumerate(config.cluster.other_devices)
    }
    for place, one in {"cluster.device": device, **places}.items():
        near = [] if one.name in known else difflib.get_close_matches(one.name, known, 1, _CLOSE)
        if near and one.tflops in (0.0, device.tflops if place in places else known[near[0]].tflops):
            raise ValueError(
                f"{place}.name={one.name} is unknown; did you mean {near[0]}? another device: set its {place}.tflops="
            )
