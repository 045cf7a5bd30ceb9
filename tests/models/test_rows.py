"""What counts positions gives some rows of a sequence what it gives them in the whole."""

from __future__ import annotations

import pytest
import torch

from trainsys.models.attention import causal_attention
from trainsys.models.dropout import KeyedDropout, SampleKeys
from trainsys.models.gpt2 import Positions
from trainsys.models.moe import load_balance_loss
from trainsys.models.rotary import rotate
from trainsys.models.rows import Rows

S = 9
ROWS = Rows(S, torch.tensor([1, 2, 6, 8]))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_rotation() -> None:
    x = random(2, S, 3, 8)
    assert torch.equal(rotate(ROWS.take(x, dim=1), 1e4, ROWS), rotate(x, 1e4)[:, ROWS.which])


def test_learned_positions() -> None:
    x, positions = random(2, S, 4), Positions(S + 2, 4).double()
    whole = positions(x)
    positions.rows = ROWS
    assert torch.equal(positions(ROWS.take(x, dim=1)), whole[:, ROWS.which])
    positions.rows = Rows(S + 3, ROWS.which)
    with pytest.raises(ValueError, match=f"sequences of {S + 3} tokens exceed model.max_seq_len={S + 2}"):
        positions(ROWS.take(x, dim=1))


def test_dropout() -> None:
    x, keys = torch.ones(2, S, 16), SampleKeys()
    keys.begin(0, 3, [7, 4])
    whole = KeyedDropout(0.5, "site", keys)
    part = KeyedDropout(0.5, "site", keys)
    part.rows = ROWS
    assert torch.equal(part(ROWS.take(x, dim=1)), whole(x)[:, ROWS.which])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_last_queries_look_at_all_keys(kv_heads: int) -> None:
    q, k, v = random(2, S, 4, 8), random(2, S, kv_heads, 8), random(2, S, kv_heads, 8)
    torch.testing.assert_close(causal_attention(q[:, 3:], k, v), causal_attention(q, k, v)[:, 3:])
    near = causal_attention(q, k, v, window=2)
    torch.testing.assert_close(near[:, 4:5], causal_attention(q[:, 4:5], k[:, 3:5], v[:, 3:5]))
    torch.testing.assert_close(causal_attention(q[:, 3:6], k[:, :6], v[:, :6]), causal_attention(q, k, v)[:, 3:6])


def test_load_balance_losses_of_parts_add_up() -> None:
    probs = random(S, 5).softmax(dim=-1).requires_grad_()
    chosen = probs.topk(2).indices
    (whole,) = torch.autograd.grad(loss := load_balance_loss(probs, chosen), probs)
    numbers = torch.cat((chosen.flatten().bincount(minlength=5), torch.tensor([S])))
    parts = [load_balance_loss(probs[own], chosen[own], lambda _: numbers) for own in (slice(0, 4), slice(4, S))]
    torch.testing.assert_close(parts[0] + parts[1], loss)
    torch.testing.assert_close(torch.autograd.grad(parts[0] + parts[1], probs)[0], whole)
