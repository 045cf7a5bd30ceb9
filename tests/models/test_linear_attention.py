"""Linear attention in chunks against the recurrence, token by token: answers, states, transitions and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trainsys.models.linear_attention import Inputs, carry, linear_attention

B, H, G, DK, DV = 2, 2, 2, 5, 7
KINDS = ("none", "scalar", "diagonal", "delta")


def inputs(kind: str, length: int, documents: bool = False, dtype: torch.dtype = torch.float64) -> Inputs:
    dice = torch.Generator().manual_seed(length)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=dice)

    gates = {"scalar": (B, length, H), "diagonal": (B, length, H, DK), "delta": (B, length, H)}
    k = random(B, length, H, DK)
    found = Inputs(
        q=random(B, length, H * G, DK),
        k=k / k.norm(dim=-1, keepdim=True) if kind == "delta" else k,
        v=random(B, length, H, DV),
        gate=None if kind == "none" else torch.nn.functional.logsigmoid(random(*gates[kind])),
        beta=random(B, length, H).sigmoid() if kind == "delta" else None,
    )
    starts = torch.rand(B, length, generator=dice) < 0.2 if documents else None
    leaves = [None if t is None else t.to(dtype).requires_grad_() for t in found[:5]]
    return Inputs(*leaves, starts)  # type: ignore[arg-type]


def one_by_one(x: Inputs, state: Tensor, starting: bool = True) -> tuple[Tensor, Tensor]:
    """The recurrence as it is defined; `state` [B, H, DK, DV] (or with any last dim: v is then left out)."""
    out = []
    for t in range(x.k.shape[1]):
        if x.gate is not None:
            gate = x.gate[:, t].exp()
            state = state * (gate[..., None] if gate.dim() == 3 else gate[..., None, None])
        if x.starts is not None:
            state = state * ~x.starts[:, t, None, None, None]
        k = x.k[:, t, :, :, None]
        value = x.v[:, t, :, None] if starting else torch.zeros(())
        if x.beta is not None:
            beta = x.beta[:, t, :, None, None]
            value = beta * (value - k.mT @ state)
        state = state + k * value
        q = x.q[:, t].unflatten(1, (H, G))
        out.append((q @ state).flatten(1))
    return torch.stack(out, dim=1), state


def gradients(value: Any, leaves: list[Tensor]) -> list[Tensor]:
    weights = [
        torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(i)) for i, v in enumerate(value)
    ]
    return list(torch.autograd.grad(sum((v * w).sum() for v, w in zip(value, weights, strict=True)), leaves))


@pytest.mark.parametrize("documents", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("length", "chunk"), [(1, 0), (13, 4), (32, 8), (37, 0), (5, 16)])
def test_chunks_are_the_recurrence(kind: str, length: int, chunk: int, documents: bool) -> None:
    x = inputs(kind, length, documents)
    before = torch.randn(B, H, DK, DV, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    leaves = [t for t in x[:5] if t is not None] + [before]
    out, state, transition = linear_attention(x, before, chunk)
    want_out, want_state = one_by_one(x, before)
    torch.testing.assert_close(out, want_out, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state, want_state, rtol=1e-11, atol=1e-11)
    identity = torch.eye(DK, dtype=torch.float64).expand(B, H, DK, DK)
    want_transition = one_by_one(x, identity, starting=False)[1]
    torch.testing.assert_close(carry(transition, identity), want_transition, rtol=1e-11, atol=1e-11)
    got = gradients((out, state, carry(transition, identity)), leaves)
    want = gradients((want_out, want_state, want_transition), leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_part_changes_nothing(kind: str) -> None:
    x, before = inputs(kind, 0), torch.randn(B, H, DK, DV, dtype=torch.float64)
    out, state, _ = linear_attention(x, before)
    assert out.shape == (B, 0, H * G * DV)
    assert out.requires_grad and state.requires_grad
    assert torch.equal(state, before)


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "delta"])
def test_gates_that_leave_nothing_overflow_nowhere(kind: str) -> None:
    """Float32, gates down to e^-200 per token: what GLA's division by gates cannot hold."""
    x = inputs(kind, 100, dtype=torch.float32)
    assert x.gate is not None
    hard = x._replace(gate=(x.gate * 200).detach().requires_grad_())
    out, state, transition = linear_attention(hard)
    leaves = [t for t in hard[:5] if t is not None]
    for value in (out, state, transition, *gradients((out, state, transition), leaves)):
        assert value.isfinite().all()
    soft = Inputs(*(None if t is None else t.double() for t in hard[:5]), None)  # type: ignore[arg-type]
    torch.testing.assert_close(
        out.double(), one_by_one(soft, torch.zeros(B, H, DK, DV).double())[0], rtol=1e-4, atol=1e-4
    )


def test_bfloat16_keeps_its_states_in_float32() -> None:
    out, state, transition = linear_attention(inputs("diagonal", 9, dtype=torch.bfloat16))
    assert (out.dtype, state.dtype, transition.dtype) == (torch.bfloat16, torch.float32, torch.float32)
