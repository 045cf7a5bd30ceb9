"""``trainsys plan … why=tp8,pp4`` on screen: one layout held against the winner, in plain lines."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from trainsys.cli.units import chance, gib, grid, seconds
from trainsys.planner.why import Answer

_VERDICTS = {
    "best": "it is the best layout",
    "tie": "as fast as the best",
    "slower": "slower",
    "memory": "out of memory",
    "illegal": "illegal",
}


def show_answer(answer: Answer, console: Console | None = None) -> None:
    """Print it: the verdict, then what it rests on."""
    console = console or Console(highlight=False)
    table = grid()
    table.add_row("asked", answer.asked)
    table.add_row("answer", Text(_VERDICTS[answer.verdict] + _among(answer), style="bold"))
    for label, line in _lines(answer):
        table.add_row(label, line)
    console.print(Padding(table, (0, 0, 0, 1), expand=False))


def _lines(answer: Answer) -> Iterator[tuple[str, str]]:
    if answer.verdict == "illegal":
        yield "rule", answer.rule
        if answer.knob:
            yield "instead", answer.knob
    elif answer.verdict == "memory":
        yield from _memory(answer)
    elif answer.verdict == "best":
        yield "layout", f"{answer.layout}, {seconds(answer.step_s)} per step"
        return
    else:
        yield "layout", f"{answer.layout}, the best that has it"
        yield "step", f"{seconds(answer.step_s)}, {_times(answer)} × the winner's {seconds(answer.winner_step_s)}"
        yield from _difference(answer)
        yield (
            "memory",
            f"{gib(answer.peak_gib)} of {answer.limit_gib:g} GiB, {chance(answer.oom_probability)} to run out",
        )
    yield (
        "winner",
        (answer.winner or "none: no layout fits") + (f", the best with {answer.among}" if answer.among else ""),
    )


def _times(answer: Answer) -> str:
    return f"{answer.factor:.2f}" if answer.factor >= 1.01 else f"{answer.factor:.3f}"


def _among(answer: Answer) -> str:
    """What "best" holds among."""
    return f" with {answer.among}" if answer.among and answer.verdict in ("best", "tie") else ""


def _memory(answer: Answer) -> Iterator[tuple[str, str]]:
    parts = sorted(((value, name) for name, value in answer.memory.items() if value), reverse=True)
    yield "layout", f"{answer.layout}, the leanest that has it"
    yield "needs", f"{gib(answer.peak_gib)} GiB of {answer.limit_gib:g}: {gib(answer.over_gib)} GiB too much"
    yield "of it", ", ".join(f"{name} {gib(value)}" for value, name in parts[:4])
    for place, remedy in enumerate(answer.remedies):
        fits = "fits" if remedy.fits else f"still {gib(remedy.peak_gib - answer.limit_gib)} GiB too much"
        yield "" if place else "remedy", f"{remedy.change}: {gib(remedy.peak_gib)} GiB, {fits} ({remedy.layout})"
    against = f", {answer.factor:.2f} × the winner's {seconds(answer.winner_step_s)}" if answer.winner else ""
    yield "step", f"{seconds(answer.step_s)} if it fitted{against}"


def _difference(answer: Answer) -> Iterator[tuple[str, str]]:
    """Parts of the step, the costliest difference first; what differs by less than a thousandth is left out."""
    label = "because"
    for name, more in sorted(answer.difference_s.items(), key=lambda item: -abs(item[1])):
        if abs(more) >= answer.winner_step_s / 1000:
            now, then = answer.parts_s[name], answer.winner_parts_s[name]
            sign = "+" if more > 0 else "−"
            yield label, f"{name:<8} {sign}{seconds(abs(more))}   {seconds(now)} against {seconds(then)}"
            label = ""
