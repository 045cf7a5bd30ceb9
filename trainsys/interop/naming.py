"""How other frameworks name and lay out our logical tensors. Imports no torch.

A *naming* says of each logical tensor in which boxes of which of their tensors it lies. A fused or stacked tensor of
theirs holds several of ours, and an interleaved one holds each of ours in several boxes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from trainsys.config import ModelConfig
from trainsys.interop.hf_names import check, ignorable, part_of
from trainsys.models.geometry import resolve, tensors
from trainsys.models.vocab_parts import whole_of
from trainsys.space.box import Box
from trainsys.space.fused import Fused
from trainsys.space.tensor import LogicalTensor


@dataclass(frozen=True)
class Span:
    """One box of ours and where it lies in theirs.

    Attributes:
        box: of our logical tensor.
        name: of their tensor.
        origin: their coordinates of ``box.start``, after `lead` and before a transposition.
        transposed: theirs is ``[in, out]``.
        lead: index in their leading dims, such as the layer in a stack of layers.
    """

    box: Box
    name: str
    origin: tuple[int, ...]
    transposed: bool = False
    lead: tuple[int, ...] = ()

    def theirs(self, box: Box) -> Box:
        """A part of our box in their coordinates."""
        start = [a - b + o for a, b, o in zip(box.start, self.box.start, self.origin, strict=True)]
        stop = [a + n for a, n in zip(start, box.shape, strict=True)]
        if self.transposed:
            start.reverse()
            stop.reverse()
        return Box((*self.lead, *start), (*(n + 1 for n in self.lead), *stop))

    def ours(self, box: Box) -> Box:
        """The other way: a part of theirs that lies in this span, in our coordinates."""
        start, stop = box.start[len(self.lead) :], box.stop[len(self.lead) :]
        if self.transposed:
            start, stop = start[::-1], stop[::-1]
        back = [b - o for b, o in zip(self.box.start, self.origin, strict=True)]
        return Box(start, stop).shift(back)


Spans = Callable[[ModelConfig, LogicalTensor], tuple[Span, ...]]


@dataclass(frozen=True)
class Naming:
    """One framework's names.

    Attributes:
        spans: where a logical tensor lies.
        ignorable: whether a tensor of theirs says nothing that our model does not have.
        check: raises ValueError for a model that theirs cannot be.
    """

    kind: str
    spans: Spans
    ignorable: Callable[[ModelConfig, str], bool]
    check: Callable[[ModelConfig], None] = lambda config: None

    def shapes(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Name and shape of each of their tensors. Raises ValueError for a model that theirs cannot be."""
        self.check(config)
        shapes: dict[str, tuple[int, ...]] = {}
        for tensor in tensors(config):
            for span in self.spans(config, tensor):
                stop = span.theirs(span.box).stop
                old = shapes.get(span.name, stop)
                shapes[span.name] = tuple(max(a, b) for a, b in zip(old, stop, strict=True))
        return shapes


def _as_stored(config: ModelConfig, tensor: LogicalTensor) -> tuple[Span, ...]:
    return (Span(Box.whole(tensor.shape), tensor.name, (0,) * len(tensor.shape)),)


def _our_spans(config: ModelConfig, tensor: LogicalTensor) -> tuple[Span, ...]:
    """Parts of the vocabulary lie in their whole."""
    name, first = whole_of(config, tensor.name)
    return (Span(Box.whole(tensor.shape), name, (first, *(0,) * (len(tensor.shape) - 1))),)


def hugging_face(fused: bool) -> Naming:
    """Theirs; `fused`: with a layer's experts in one tensor."""

    def spans(config: ModelConfig, tensor: LogicalTensor) -> tuple[Span, ...]:
        part, whole = part_of(config, tensor.name, fused), Box.whole(tensor.shape)
        lead = () if part.index is None else (part.index,)
        origin = part.box(whole).start[len(lead) :]
        return (Span(whole, part.name, origin[::-1] if part.transposed else origin, part.transposed, lead),)

    return Naming("Hugging Face's", spans, ignorable, check)


OURS = Naming("ours", _our_spans, lambda config, name: config.tied and name == "output.weight")
STORED = Naming("ours", _as_stored, OURS.ignorable)  # as a checkpoint has it: each part of the vocabulary by itself
HF, HF_FUSED = hugging_face(False), hugging_face(True)

_MEGATRON = {
    "tok_embeddings.weight": "embedding.word_embeddings.weight",
    "pos_embeddings.weight": "embedding.position_embeddings.weight",
    "norm.weight": "decoder.final_layernorm.weight",
    "norm.bias": "decoder.final_layernorm.bias",
    "output.weight": "output_layer.weight",
    "attention.q_norm": "self_attention.q_layernorm.",
    "attention.k_norm": "self_attention.k_layernorm.",
    "attention.wo": "self_attention.linear_proj.",
    "feed_forward.w2": "mlp.linear_fc2.",
    "feed_forward.c_fc": "mlp.linear_fc1.",
    "feed_forward.c_proj": "mlp.linear_fc2.",
    "feed_forward.router": "mlp.router.",
    "feed_forward.experts.w2": "mlp.experts.experts.linear_fc2.",
    "feed_forward.shared.w2": "mlp.shared_experts.linear_fc2.",
    "feed_forward.shared_gate": "mlp.shared_experts.gate_",
}
_QKV = ("attention.wq", "attention.wk", "attention.wv")
_FUSED = {"attention.wq": "self_attention.linear_qkv", "attention.wk": "self_attention.linear_qkv",
          "attention.wv": "self_attention.linear_qkv", "feed_forward.w1": "mlp.linear_fc1",
          "feed_forward.w3": "mlp.linear_fc1", "feed_forward.experts.w1": "mlp.experts.experts.linear_fc1",
          "feed_forward.experts.w3": "mlp.experts.experts.linear_fc1",
          "feed_forward.shared.w1": "mlp.shared_experts.linear_fc1",
          "feed_forward.shared.w3": "mlp.shared_experts.linear_fc1"}  # fmt: skip
_NORMS = {  # ours -> theirs on its own, or with the matrix after it
    **dict.fromkeys(("attention_norm", "ln_1"), ("input_layernorm.", "self_attention.linear_qkv.layer_norm_")),
    **dict.fromkeys(("ffn_norm", "ln_2"), ("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")),
}
_STATELESS = re.compile(r"(.*\.)?(_extra_state(/.*)?|rotary_pos_emb\.inv_freq)|rng_state.*|.*\._extra_state/.*")


def megatron(stacked: bool, norms: tuple[tuple[bool, ...], tuple[bool, ...]]) -> Naming:
    """Megatron-Core's GPT model (``models/gpt``, ``transformer/``): one tensor for all layers, or one for each.

    Queries, keys and values are one matrix, interleaved by key/value group; gate and up are the halves of another. The
    experts of a layer are stacked (``transformer/moe/experts.py``).

    Args:
        norms: whether those before attention and before the feed-forward are named after the matrix that follows; to
            write, either may be both.
    """

    def spans(config: ModelConfig, tensor: LogicalTensor) -> tuple[Span, ...]:
        match = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", tensor.name)
        whole, zeros = Box.whole(tensor.shape), (0,) * len(tensor.shape)
        if match is None:
            name, first = whole_of(config, tensor.name)
            return (Span(whole, _MEGATRON[name], (first, *zeros[1:])),)
        layer, path, kind = int(match[1]), match[2], match[3]
        module = path if tensor.expert is None else path.replace(f".experts.{tensor.expert}.", ".experts.")
        prefix, lead = ("decoder.layers.", (layer,)) if stacked else (f"decoder.layers.{layer}.", ())
        lead = lead if tensor.expert is None else (*lead, tensor.expert)
        if module in _FUSED:
            fused, number = _fused(resolve(config), layer, path, kind)
            return tuple(
                Span(own.box, f"{prefix}{_FUSED[module]}.{kind}", own.origin, lead=lead)
                for own in fused.spans()
                if own.part == number
            )
        named: tuple[str, ...] = () if module in _NORMS else (_MEGATRON[module],)
        if module in _NORMS:
            named = tuple(_NORMS[module][after] for after in norms[module in ("ffn_norm", "ln_2")])
        return tuple(Span(whole, f"{prefix}{name}{kind}", zeros, lead=lead) for name in named)

    def plain(config: ModelConfig, name: str) -> bool:
        twice = config.num_experts and name.removesuffix("weight").endswith(_NORMS["ffn_norm"])
        return bool(_STATELESS.fullmatch(name) or twice) or (config.tied and name == "output_layer.weight")

    return Naming("Megatron's", spans, plain)


_EITHER = ((True,), (False,))
MEGATRON = tuple(megatron(s, (a, b)) for s in (True, False) for a in _EITHER for b in reversed(_EITHER))


def megatron_to_write(config: ModelConfig) -> Naming:
    """Stacked. Before experts, their layers from Transformer Engine and their own ask for the norm by either name."""
    return megatron(True, ((True,), (True, False) if config.num_experts else (True,)))


@lru_cache(maxsize=1024)
def _fused(config: ModelConfig, layer: int, path: str, kind: str) -> tuple[Fused, int]:
    """The matrices (or their biases) of a layer that lie in one with `path`, and its number among them.

    Queries, keys and values alternate by key/value group.
    """
    alternate, above = path in _QKV, path.rpartition(".")[0]
    modules = _QKV if alternate else (f"{above}.w1", f"{above}.w3")
    names = [f"layers.{layer}.{module}.{kind}" for module in modules]
    parts = {t.name: t for t in _of_layer(config)[layer]}
    fused = Fused(tuple(parts[name] for name in names), groups=config.num_kv_heads if alternate else 1)
    return fused, modules.index(path)


@lru_cache(maxsize=4)
def _of_layer(config: ModelConfig) -> dict[int, list[LogicalTensor]]:
    layers: dict[int, list[LogicalTensor]] = {}
    for tensor in tensors(config):
        layers.setdefault(tensor.block, []).append(tensor)
    return layers


def vocabulary(config: ModelConfig) -> tuple[str, ...]:
    """Our tensors of one row per token; other frameworks pad them to a multiple."""
    return ("tok_embeddings.weight",) if config.tied else ("tok_embeddings.weight", "output.weight")


def best_naming(
    namings: tuple[Naming, ...], config: ModelConfig, found: Mapping[str, tuple[int, ...]]
) -> tuple[Naming, str]:
    """The naming, and the prefix of all names (such as ``module.``), that most of the `found` names agree with."""

    def hits(choice: tuple[Naming, str]) -> int:
        naming, prefix = choice
        try:
            return sum(prefix + name in found for name in naming.shapes(config))
        except ValueError:
            return -1

    prefixes = ("", "model.", "module.", "model.module.", "module.module.", "app.model.")
    return max(((n, p) for n in namings for p in prefixes), key=hits)


def differences(
    naming: Naming, prefix: str, config: ModelConfig, found: Mapping[str, tuple[int, ...]], extra: bool = True
) -> list[str]:
    """What of the architecture `config` is not among the tensors found, name by name; padded vocabularies pass.

    Args:
        extra: also name what is found beyond the model.
    """
    shapes = naming.shapes(config)
    padded = {
        s.name
        for t in tensors(config)
        if whole_of(config, t.name)[0] in vocabulary(config)
        for s in naming.spans(config, t)
    }
    wrong = []
    for name, shape in shapes.items():
        theirs = found.get(prefix + name)
        if theirs is None:
            wrong.append(f"{prefix}{name} {list(shape)} is missing")
        elif theirs != shape and not (name in padded and theirs[0] > shape[0] and theirs[1:] == shape[1:]):
            wrong.append(f"{prefix}{name} is {list(theirs)}, not {list(shape)}")
    for name in sorted(found) if extra else ():
        bare = name.removeprefix(prefix)
        if bare not in shapes and not naming.ignorable(config, bare):
            wrong.append(f"{name} {list(found[name])} is not in our {config.family}")
    return wrong


def refuse(path: object, wrong: list[str]) -> None:
    """Raise ValueError with the first few of what is wrong and how many more there are."""
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"{path} does not hold this model: {'; '.join(wrong[:5])}{more}")
