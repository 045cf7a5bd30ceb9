"""The kinds of checkpoints, by the word before the colon in ``KIND:PATH``. A new one is one line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainsys.config import ModelConfig, RunConfig, to_dict
from trainsys.interop.formats import Source
from trainsys.models.geometry import resolve


@dataclass(frozen=True)
class Kind:
    """One kind of checkpoint.

    Attributes:
        opens: ``module:function`` of a path, to read it; imported when it is needed.
        target: ``module:class`` that writes it; empty: only read.
        what: for people.
    """

    opens: str
    target: str
    what: str

    def open(self, path: Path) -> Source:
        """The checkpoint at `path`. Raises ValueError, one line."""
        source: Source = _imported(self.opens)(path)
        return source


KINDS = {
    "dcp": Kind("trainsys.elastic.step_folder:open_dcp", "trainsys.elastic.step_folder:StepTarget",
                "our step-… folder; also read: torch DCP of a state_dict"),
    "hf": Kind("trainsys.interop.hf:open_hf", "trainsys.interop.hf:HFTarget", "Hugging Face safetensors"),
    "deepspeed": Kind("trainsys.interop.deepspeed:open_deepspeed", "", "DeepSpeed ZeRO 1, 2, 3: global_step…"),
    "universal": Kind("trainsys.interop.universal:open_universal", "trainsys.interop.universal:UniversalTarget",
                      "DeepSpeed's Universal Checkpoint"),
    "megatron": Kind("trainsys.interop.megatron:open_megatron", "trainsys.interop.megatron:MegatronTarget",
                     "Megatron-Core torch_dist"),
}  # fmt: skip


def parse_address(address: str, what: str) -> tuple[str, Path]:
    """(kind, path) of ``KIND:PATH``; a path alone is `dcp`. Raises ValueError that lists the kinds."""
    kind, colon, path = address.partition(":")
    if not colon or "/" in kind:
        kind, path = "dcp", address
    if kind not in KINDS or not path:
        raise ValueError(f"{what} {address} is not of the form KIND:PATH; kinds: {', '.join(KINDS)}")
    return kind, Path(path).expanduser()


def open_source(address: str, what: str = "SRC") -> Source:
    """The checkpoint that ``KIND:PATH`` names. Raises ValueError, one line."""
    kind, path = parse_address(address, what)
    return KINDS[kind].open(path)


def target_class(kind: str) -> Callable[..., Any]:
    """What writes checkpoints of `kind`. Raises ValueError for one that is only read."""
    if not KINDS[kind].target:
        raise ValueError(f"{kind}: is only read; can be written: {', '.join(k for k, v in KINDS.items() if v.target)}")
    made: Callable[..., Any] = _imported(KINDS[kind].target)
    return made


def check_model(source: Source, model: ModelConfig) -> None:
    """Whether `source` holds exactly the architecture `model`. Raises ValueError with the knob or the tensors."""
    if source.config is not None:
        theirs, ours = to_dict(resolve(source.config)), to_dict(resolve(model))
        for key, value in ours.items():
            if key not in ("dropout", "max_seq_len", "router_aux_coef") and theirs[key] != value:
                raise ValueError(
                    f"{source.path} has {key}={theirs[key]}, the run has {value}; set model.{key}={theirs[key]}"
                )
    source.check(model)


def weights_to_start_from(config: RunConfig) -> Source:
    """The checkpoint that ``train.init_from=KIND:PATH`` names, of the very architecture of ``config.model``.

    Raises:
        ValueError: one line, naming what does not fit.
    """
    try:
        source = open_source(config.train.init_from, "train.init_from")
        check_model(source, config.model)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith("train.init_from") else f"train.init_from: {text}") from None
    return source


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
