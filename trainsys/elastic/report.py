"""The report of a drill: for machines (report.json), for people (report.md), and the pictures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainsys.config import RunConfig
from trainsys.elastic.check.registry import sentence
from trainsys.elastic.drill import Drill, by_step
from trainsys.elastic.drill_result import with_reasons
from trainsys.elastic.epochs_picture import draw_epochs
from trainsys.elastic.goodput import ACTIVITIES
from trainsys.elastic.measured import tell_comparison, write_timelines
from trainsys.elastic.story import MIB
from trainsys.schedule.compare import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILES = {
    "report.md": "what happened, in words and a table",
    "report.json": "the same for programs",
    "loss.png": "loss with faults over loss without",
    "epochs.png": "who worked under which layout when, and what befell whom",
    "timeline.png": "one step as predicted, and as measured",
    "trace.json": "the same step for ui.perfetto.dev",
    "metrics.jsonl": "every step: loss, gradient norm, rate, memory",
    "history.jsonl": "every rank lost or joined, every change of layout",
    "history/": "what every process did, for `trainsys check`",
    "tensorboard/": "the metrics for `tensorboard --logdir`",
    "config.yaml": "the resolved configuration",
}

_NAMED = 12  # marks in the picture of the loss that have room for a name
_DASHED = (0, (4, 3))


def files(config: RunConfig) -> dict[str, str]:
    """What `write_report` leaves, and what each is: `FILES`, but for pictures of what there is not."""
    gone = {"loss.png"} if config.train.emulate else set()
    gone |= set() if config.elastic.history else {"epochs.png", "history/"}
    return {name: what for name, what in FILES.items() if name not in gone}


def write_report(drill: Drill) -> None:
    """Write every file of the report into the drill's run folder."""
    folder = Path(drill.config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    comparison = write_timelines(drill.config, drill.undisturbed, picture=True)
    drill.result["comparison"] = asdict(comparison) if comparison else None
    _write_json(folder / "report.json", drill.result)
    (folder / "report.md").write_text(markdown(drill))
    if not drill.config.train.emulate:
        draw_loss(drill, folder / "loss.png")
    if drill.config.elastic.history:
        draw_epochs(folder, folder / "epochs.png")


def summary(drill: Drill) -> list[str]:
    """What happened, in a few plain sentences: the last screen, and the head of report.md."""
    r = drill.result
    lost, joined = len(r["faults"]), len(r["joins"])
    drained = f", {_count(len(r['drains']), 'rank', 'ranks')} left as told" if r["drains"] else ""
    lines = [
        f"{_count(lost, 'rank was', 'ranks were')} lost and {_count(joined, 'rank', 'ranks')} joined{drained} while "
        f"{_count(r['steps'], 'step', 'steps')} were trained."
    ]
    if r["standing_by"]:
        lines.append(f"At the end without work, standing by: rank {', '.join(map(str, r['standing_by']))}.")
    if r["takeovers"]:
        lines.append(f"The manager was lost {_times(len(r['takeovers']))}, and another took over.")
    if r["drains"]:
        lines.append(
            f"{_count(r['steps_redone'], 'step', 'steps')} redone, {r['steps_redone_for_leaving']} of them for leaving."
        )
    if r["steps_lost"] or r["samples_lost"] or r["samples_repeated"]:
        lines.append(
            f"{_count(r['steps_lost'], 'step', 'steps')} lost, {_count(r['samples_lost'], 'sample', 'samples')} lost, "
            f"{r['samples_repeated']} repeated."
        )
    else:
        lines.append("No step was lost; every sample was used exactly once.")
    if r["emulated"]:
        lines.append("Computing was emulated: there are no losses to compare.")
    elif r["bit_equal_loss"] and r["bit_equal_grad_norm"]:
        lines.append(f"loss bit-equal over {_count(r['steps'], 'step', 'steps')} to the undisturbed run.")
    else:
        lines.append(f"loss NOT bit-equal to the undisturbed run: it differs by up to {r['max_abs_loss_diff']:.3g}.")
    if r["invariants"]:
        lines.append(sentence(r["invariants"]))
    if r["goodput"]:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in r["goodput"].items())
        lines.append(f"Of the time: {shares}.")
    times = [f["recover_s"] for f in (*r["faults"], *r["takeovers"]) if f["recover_s"] is not None]
    if times:
        lines.append(f"From a fault to the step in flight being done again: {max(times):.2f} s at most.")
    predicted, measured = r["predicted_step_s"], r["measured_step_s"]
    off = predicted / measured - 1
    lines.append(f"Step time: predicted {predicted:.3f} s, measured {measured:.3f} s ({off:+.0%}).")
    if r["comparison"] is not None:
        lines.append(tell_comparison(Comparison(**r["comparison"])))
    if r["not_struck"]:
        lines.append(f"Planned but never struck: {with_reasons(r['not_struck'], r['nothing_there'])}.")
    if r["idle"]:
        told = with_reasons(r["idle"], r["nothing_there"])
        lines.append(f"Planned, but the rank had no work then, or there was nothing to strike: {told}.")
    if r["unplanned"]:
        lines.append(f"Lost though nobody killed them: {', '.join(r['unplanned'])}.")
    return lines


def markdown(drill: Drill) -> str:
    """report.md: the summary, one row per lost rank, one per join, and the list of files."""
    r = drill.result
    config = drill.config
    sequences = _count(config.batch.global_size, "sequence", "sequences")
    batch = f"{sequences} of {config.batch.seq_len} tokens per step"
    parts = [f"# Drill: {'passed' if drill.passed else 'failed'}", "\n".join(f"- {line}" for line in summary(drill))]
    parts.append(f"Model {config.model.family}, {batch}, first layout {drill.disturbed.changes[0].after}.")
    if r["faults"] or r["takeovers"]:
        parts.append("## Lost\n\n" + "\n".join(_losses(r)))
    if r["goodput"]:
        rows = ["| share of the time | of what |", "| ---: | --- |"]
        rows += [f"| {share:.2%} | {ACTIVITIES[name]} |" for name, share in r["goodput"].items()]
        rows.append(f"\n{_tell_overhead(r['overhead'])}")
        parts.append("## Goodput\n\n" + "\n".join(rows))
    others = [n for n in r["strikes"] if n["kind"] not in ("kill", "stop", "wake", "drain")]
    if others:
        rows = ["| fault | struck in step |", "| --- | ---: |", *(f"| {n['event']} | {n['step']} |" for n in others)]
        parts.append("## Other faults\n\n" + "\n".join(rows))
    rows = ["| step | why | layout | moved (MiB) | transfer (s) |", "| ---: | --- | --- | ---: | ---: |"]
    for c in drill.disturbed.changes:
        why = c.reason or "start"
        rows.append(f"| {c.step} | {why} | {c.after} | {c.bytes_moved / MIB:.2f} | {c.transfer_s:.3f} |")
    parts.append("## Layouts\n\n" + "\n".join(rows))
    parts.append("## Files\n\n" + "\n".join(f"- `{name}`: {what}" for name, what in files(config).items()))
    return "\n\n".join(parts) + "\n"


def _losses(r: dict[str, Any]) -> list[str]:
    """The table of what was lost, ranks and managers, by step."""
    rows = ["| fault | rank | phase | step | detected after (s) | step done again after (s) | moved (MiB) |"]
    rows.append("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for f in sorted((*r["faults"], *r["takeovers"]), key=lambda f: int(f["step"])):
        recover = "never" if f["recover_s"] is None else f"{f['recover_s']:.3f}"
        moved = f"{f['bytes_moved'] / MIB:.2f}" if "bytes_moved" in f else "–"  # a manager holds no state
        cells = (f["kind"], f["rank"], f["phase"] or "unknown", f["step"], f"{f['detect_s']:.3f}", recover, moved)
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def _tell_overhead(over: dict[str, Any]) -> str:
    low_s, high_s = over["undisturbed_quartiles_s"]
    noise = ", within the noise" if over["within_noise"] else ""
    return (
        f"The median step under the first layout took {over['step_s']:.4f} s, undisturbed "
        f"{over['undisturbed_step_s']:.4f} s ({over['relative']:+.1%}{noise}). Half of the undisturbed steps took "
        f"{low_s:.4f} to {high_s:.4f} s."
    )


def draw_loss(drill: Drill, path: Path) -> None:
    """Both loss curves, with a line at every fault and every join; many of them are counted, not named."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for recorder, label, colour, width in (
        (drill.undisturbed, "undisturbed", "#B8C4D6", 6.0),
        (drill.disturbed, "with faults", "#1F3A68", 1.4),
    ):
        losses = {step: d.loss for step, d in sorted(by_step(recorder.decisions).items())}
        axes.plot(list(losses), list(losses.values()), label=label, color=colour, linewidth=width)
    r = drill.result
    names = [f"{f['kind']} in {f['phase']}" if f["phase"] else "lost" for f in r["faults"]]
    lost = [(f["step"], f"rank {f['rank']}: {name}") for f, name in zip(r["faults"], names, strict=True)]
    joined = [(j["step"], f"rank {j['rank']} joins") for j in r["joins"]]
    named = len(lost) + len(joined) <= _NAMED
    for marks, colour, what in ((lost, "#C0392B", "lost"), (joined, "#2E8B57", "joined")):
        for step, text in marks:
            _mark(axes, step, text if named else "", colour)
        if not named:
            label = f"{_count(len(marks), 'rank', 'ranks')} {what}"
            axes.plot([], [], color=colour, linestyle=_DASHED, label=label)
    verdict = "bit-equal" if r["bit_equal_loss"] else f"differ by up to {r['max_abs_loss_diff']:.3g}"
    axes.set_title(
        f"Loss over {_count(r['steps'], 'step', 'steps')}: the two runs are {verdict}", loc="left", fontsize=11
    )
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.margins(x=0.02, y=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(framealpha=0.9, edgecolor="none", loc="lower left")  # a loss falls: the corner below its start is free
    figure.savefig(path, dpi=150)


def _mark(axes: Axes, step: int, text: str, colour: str) -> None:
    axes.axvline(step, color=colour, linewidth=1.2 if text else 0.8, linestyle=_DASHED)
    axes.annotate(
        text, (step, 0.98), xycoords=("data", "axes fraction"), xytext=(-3, 0), textcoords="offset points",
        rotation=90, ha="right", va="top", fontsize=8.5, color=colour,
    )  # fmt: skip


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"
