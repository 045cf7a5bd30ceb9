"""Builds the torch model of a family by name; only the chosen family is imported."""

from __future__ import annotations

from importlib import import_module

from trainsys.config import ModelConfig
from trainsys.models.decoder import Decoder
from trainsys.models.geometry import family_of, resolve


def build(config: ModelConfig, blocks: range) -> Decoder:
    """Module of the blocks `blocks` of `config`'s model; ``range(-1, num_layers + 1)`` is the whole.

    Raises:
        ValueError: for an unknown family or impossible sizes.
    """
    config = resolve(config)
    module, _, name = family_of(config).module.partition(":")
    model = getattr(import_module(module), name)(config, blocks)
    assert isinstance(model, Decoder)
    return model
