"""Backward in two halves: the bits of one, each piece of work once, and no parameter without its gradient."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parallel.runs import run_config
from trainsys.models.geometry import resolve
from trainsys.models.registry import build
from trainsys.parallel import split
from trainsys.parallel.split import Deferred, Halves, split_backward
from trainsys.parallel.stage import Batch, StageRunner, apply_recompute

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("float32", {}),
    "llama bfloat16": ("bfloat16", {"num_kv_heads": 2}),
    "llama float64 tied": ("float64", {"tied": True}),
    "gpt2 tied dropout": ("float32", {"family": "gpt2", "tied": True, "dropout": 0.1}),
    "qwen3": ("float32", {"family": "qwen3", "head_dim": 6}),
    "mixtral": ("float32", {"family": "mixtral", "num_experts": 4, "router_aux_coef": 0.1}),
    "qwen3_moe": ("float32", {"family": "qwen3_moe", "num_experts": 4, "head_dim": 4, "shared_ffn_dim": 32}),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Collected:
    """One process with a whole model, and the gradients of three microbatches."""

    def __init__(self, name: str, halves: bool, recompute: bool = False, offload: bool = False) -> None:
        dtype, model = MODELS[name]
        config = resolve(run_config(dtype, model).model)
        torch.manual_seed(0)
        self.model = build(config, range(-1, 3)).to(DTYPES[dtype])
        deferred = Deferred() if halves else None
        if deferred is not None:
            split_backward(self.model, deferred)
        if recompute:
            apply_recompute(self.model)
        self.grads: dict[int, dict[str, Tensor]] = {}
        torch.manual_seed(1)
        tokens = torch.randint(0, 64, (3, 2, 17))
        batch = Batch(0, {mb: (tokens[mb, :, :-1], tokens[mb, :, 1:], (2 * mb, 2 * mb + 1)) for mb in range(3)})
        self.stage = StageRunner(
            self.model, lambda mb: (2, 16, 32), lambda mb: 16, 0, 96, None, None, self.grads.__setitem__,
            {range(-1, 3): [name for name, _ in self.model.named_parameters()]}, offload=offload, deferred=deferred,
        )  # fmt: skip
        self.stage.begin(batch)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_two_halves_have_the_bits_of_one(name: str, recompute: bool) -> None:
    whole, halves = Collected(name, False, recompute), Collected(name, True, recompute, offload=name == "llama")
    for stage in (whole.stage, halves.stage):
        for mb in range(3):
            stage.forward(mb, None)
    for mb in range(3):
        whole.stage.backward(mb, None)
    halves.stage.backward_input(0, None)
    halves.stage.backward_input(1, None)
    assert not halves.grads  # nobody has been given a part of a gradient
    halves.stage.backward_weight(1)
    halves.stage.backward_weight(0)
    halves.stage.backward(2, None)
    assert halves.grads.keys() == whole.grads.keys() == {0, 1, 2}
    assert halves.stage.losses == whole.stage.losses
    for mb, grads in whole.grads.items():
        assert grads.keys() == halves.grads[mb].keys() == dict(whole.model.named_parameters()).keys()
        for key, grad in grads.items():
            assert torch.equal(grad, halves.grads[mb][key]), (mb, key)


@pytest.mark.parametrize("recompute", [False, True])
def test_each_piece_of_work_runs_once(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per microbatch one forward of each linear, one more where it is computed again, one backward, one product."""
    calls: Counter[str] = Counter()
    forward, backward = split._SplitLinear.forward, split._SplitLinear.backward

    def counted(which: str, function: Any) -> Any:
        def call(ctx: Any, *args: Any) -> Any:
            calls[which] += 1
            return function(ctx, *args)

        return staticmethod(call)

    monkeypatch.setattr(split._SplitLinear, "forward", counted("forward", forward))
    monkeypatch.setattr(split._SplitLinear, "backward", counted("backward", backward))
    run = Collected("llama", True, recompute)
    linears = sum(isinstance(module, nn.Linear) for module in run.model.modules())
    layers = linears - 1  # the head is not computed again
    run.stage.forward(0, None)
    run.stage.backward_input(0, None)
    assert calls == {"forward": linears + layers * recompute, "backward": linears}
    (half,) = run.stage._halves[0]
    assert len(half.waiting) == linears
    run.stage.backward_weight(0)
    assert calls == {"forward": linears + layers * recompute, "backward": linears}


def test_the_first_half_frees_what_the_second_does_not_need() -> None:
    """After I the inputs and output gradients of linears stay, and nothing else: not the scores of attention."""
    run = Collected("llama", True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.detach()) or t, lambda t: t):
        run.stage.forward(0, None)
    kept = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}.values())
    run.stage.backward_input(0, None)
    (half,) = run.stage._halves[0]
    storages = [t.untyped_storage() for _, x, grad in half.waiting for t in (x, grad)]
    assert 0 < sum({s.data_ptr(): s.nbytes() for s in storages}.values()) < kept
    assert 0 not in run.stage._kept


def test_a_weight_used_twice_has_the_sum() -> None:
    torch.manual_seed(0)
    one, deferred = nn.Linear(4, 4, dtype=torch.float64), Deferred()
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    out = one(one(x).relu()).square().sum() + 0.5 * one.weight.square().sum()
    out.backward()
    expected, expected_x = {n: p.grad.clone() for n, p in one.named_parameters()}, x.grad  # type: ignore[union-attr]
    one.zero_grad()
    x.grad = None
    split_backward(one, deferred)
    (one(one(x).relu()).square().sum() + 0.5 * one.weight.square().sum()).backward()
    params = dict(one.named_parameters())
    halves = Halves({n: p.grad for n, p in params.items()}, deferred.take())
    for name, grad in halves.finish(params).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-12, atol=0)
    assert torch.equal(x.grad, expected_x)  # type: ignore[arg-type]


def test_an_expert_without_tokens_has_a_gradient_of_zeros() -> None:
    one, deferred = nn.Linear(4, 3, bias=False), Deferred()
    split_backward(one, deferred)
    x = torch.zeros(0, 4, requires_grad=True)
    one(x).sum().backward()
    grads = Halves({"weight": None}, deferred.take()).finish({"weight": one.weight})
    assert torch.equal(grads["weight"], torch.zeros(3, 4)) and x.grad is not None and x.grad.shape == (0, 4)


@pytest.mark.parametrize("halves", [False, True])
def test_a_parameter_without_a_gradient_stops_the_step(halves: bool) -> None:
    run = Collected("llama", halves)
    run.model.layers["0"].attention.forward = lambda x: x  # type: ignore[union-attr, method-assign]
    run.stage.forward(0, None)
    with pytest.raises(RuntimeError, match=r"no gradient for layers\.0\.attention\.wk\.weight, .*wo"):
        run.stage.backward(0, None)
    assert not run.grads


def test_linears_under_other_names_are_deferred_too() -> None:
    """A product that does not go through a module is autograd's own, and still counts."""
    weight, deferred = nn.Parameter(torch.randn(3, 3)), Deferred()
    x = torch.randn(2, 3)
    split.linear(x, weight, None, deferred).sum().backward()
    assert weight.grad is None
    F.linear(x, weight).sum().backward()
    once = weight.grad
    assert once is not None
    grads = Halves({"w": once.clone()}, deferred.take()).finish({"w": weight})
    assert torch.equal(grads["w"], once + once)
