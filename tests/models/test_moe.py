"""The mixture of experts: its loss and shared expert against `transformers`, its gradients against a plain formula."""

from __future__ import annotations

import pytest
import torch

from trainsys.config import ModelConfig
from trainsys.models.geometry import resolve
from trainsys.models.moe import MoE, load_balance_loss, route

transformers = pytest.importorskip("transformers")
CONFIG = ModelConfig("qwen3_moe", 96, 16, 2, num_heads=4, num_experts=5, experts_per_token=3, expert_ffn_dim=24)


def module(**fields: object) -> MoE:
    torch.manual_seed(0)
    moe = MoE(resolve(ModelConfig(**(CONFIG.__dict__ | fields))))  # type: ignore[arg-type]
    for p in moe.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return moe


@pytest.mark.parametrize("k", [1, 2, 3])
def test_load_balance_loss_is_theirs(k: int) -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    probs, _, chosen = route(logits, k, norm=False)
    torch.testing.assert_close(load_balance_loss(probs, chosen), load_balancing_loss_func((logits,), 5, k))
    even = torch.full((5, 5), 0.2, dtype=torch.float64)
    assert load_balance_loss(even, torch.arange(5).unsqueeze(1)).item() == pytest.approx(1.0)


def test_shared_expert_is_theirs() -> None:
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

    moe = module(shared_ffn_dim=20)
    theirs = Qwen2MoeSparseMoeBlock(
        transformers.Qwen2MoeConfig(
            hidden_size=16, num_experts=5, num_experts_per_tok=3, moe_intermediate_size=24, norm_topk_prob=False,
            shared_expert_intermediate_size=20,
        )
    )  # fmt: skip
    ours = dict(moe.named_parameters())
    experts = [{m: ours[f"experts.{e}.{m}.weight"] for m in ("w1", "w2", "w3")} for e in range(5)]
    state = {
        "gate.weight": ours["router.weight"], "shared_expert_gate.weight": ours["shared_gate.weight"],
        "shared_expert.gate_proj.weight": ours["shared.w1.weight"],
        "shared_expert.up_proj.weight": ours["shared.w3.weight"],
        "shared_expert.down_proj.weight": ours["shared.w2.weight"],
        "experts.gate_up_proj": torch.stack([torch.cat([e["w1"], e["w3"]]) for e in experts]),
        "experts.down_proj": torch.stack([e["w2"] for e in experts]),
    }  # fmt: skip
    theirs.load_state_dict(state)
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(moe(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_the_plain_formula() -> None:
    """Every expert on every token, weighted by 0 where it is not chosen, plus the load-balance loss of the layer."""
    moe = module(router_norm=True, router_aux_coef=0.3).double()
    x = torch.randn(2, 4, 16, dtype=torch.float64, requires_grad=True)
    moe(x).square().sum().backward()
    got = {name: p.grad for name, p in moe.named_parameters()} | {"x": x.grad}
    moe.zero_grad()
    x.grad = None
    tokens = x.flatten(0, 1)
    probs = moe.router(tokens).softmax(-1)
    top = probs.topk(3)
    weights = torch.zeros_like(probs).scatter(1, top.indices, top.values / top.values.sum(-1, keepdim=True))
    answers = torch.stack([expert(tokens) for expert in moe.experts.values()], dim=1)
    loss = (answers * weights.unsqueeze(-1)).sum(1).square().sum()
    share = torch.zeros_like(probs).scatter(1, top.indices, 1.0).mean(0)
    (loss + 0.3 * 5 * (share * probs.mean(0)).sum()).backward()
    want = {name: p.grad for name, p in moe.named_parameters()} | {"x": x.grad}
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-12, atol=1e-12, msg=name)


def test_an_expert_without_tokens_has_a_gradient_and_ties_go_to_the_lower() -> None:
    moe = module()
    torch.nn.init.zeros_(moe.router.weight)
    moe(torch.randn(1, 6, 16)).sum().backward()
    used = {e: float(expert.w1.weight.grad.abs().sum()) for e, expert in moe.experts.items()}  # type: ignore[union-attr, operator]
    assert [e for e, g in used.items() if g > 0] == ["0", "1", "2"]
