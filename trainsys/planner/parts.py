"""A step taken apart by what the slowest stage's time goes into; the parts add up to the step."""

from __future__ import annotations

from trainsys.planner.plan import Plan

PARTS = ("compute", "tp", "cp", "ep", "dp", "pp", "offload", "bubble", "update")


def step_parts(plan: Plan) -> dict[str, float]:
    """Seconds of one step by part; all of `PARTS`, with the sum ``plan.step_s``.

    `pp` is what the pipeline's messages add, `bubble` all other waiting for other stages: what is left of the step.
    Where one stage computes longest and another ends last, `bubble` can be slightly negative.
    """
    named = {"compute": plan.compute_s, "tp": plan.tp_s, "cp": plan.cp_s, "ep": plan.ep_s, "dp": plan.dp_s}
    named["offload"] = plan.offload_s
    rest = plan.step_s - sum(named.values()) - plan.update_s
    rest = 0.0 if abs(rest) < 1e-9 * plan.step_s else rest
    messages = min(plan.pp_exposed_s, max(rest, 0.0))
    return {**named, "pp": messages, "bubble": rest - messages, "update": plan.update_s}
