"""Other schedules for the same layout: which can run its stages and microbatches, what each costs, why not others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainsys.config import ParallelConfig, RunConfig
from trainsys.planner.check import check_layout
from trainsys.planner.timeline import Timeline, timeline
from trainsys.schedule import GENERATORS, is_file

ALL = "all"
_RUNS = (1, 2)  # runs of layers per stage that are tried, beside those of the layout


@dataclass(frozen=True)
class Alternative:
    """One schedule that can run.

    Attributes:
        needs: what of the config it sets, as on the command line.
    """

    config: RunConfig
    needs: str
    timeline: Timeline

    @property
    def name(self) -> str:
        return self.config.parallel.schedule

    @property
    def label(self) -> str:
        """``zbv vp2``; ``auto:zb2p`` says what was chosen."""
        vp, name = self.config.parallel.vp, self.timeline.schedule.name
        return f"{name} vp{vp}" if vp > 1 else name

    def as_dict(self) -> dict[str, Any]:
        """What a program needs to know of it beside its timeline."""
        return {"schedule": self.name, "vp": self.config.parallel.vp, "needs": self.needs}

    @property
    def peak_microbatches(self) -> float:
        """Most microbatches of a whole stage whose activations any lane keeps at once."""
        return max(self.timeline.run.peak_activations) / self.config.parallel.vp


def schedule_names(text: str) -> list[str]:
    """The schedules that ``schedule=TEXT`` asks for: all, or those between the commas.

    Raises:
        ValueError: for one that is not known.
    """
    names = list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
    if ALL in names:
        return [*GENERATORS, *(name for name in names if is_file(name))]
    unknown = [name for name in names if name not in GENERATORS and not is_file(name)]
    if unknown or not names:
        raise ValueError(
            f"schedule={''.join(unknown[:1])} is unknown; set schedule={ALL}, or some of "
            f"{', '.join(GENERATORS)}, FILE.csv"
        )
    return names


def alternatives(config: RunConfig, names: Sequence[str]) -> tuple[list[Alternative], dict[str, str]]:
    """Every named schedule on the stages and microbatches of `config`, with one and with two runs of layers per stage.

    Runs lie as each schedule wants them. Where a schedule's runs are not those of ``parallel.stage_layers``, layers are
    split evenly.

    Returns:
        Those that can run, the shortest step first, and the others with the reason.
    """
    able, unable = list[Alternative](), dict[str, str]()
    for name in names:
        reasons = []
        for vp in sorted({*_RUNS, config.parallel.vp}):
            parallel = _with(config.parallel, name, vp)
            other = dataclasses.replace(config, parallel=parallel)
            try:
                check_layout(other)
                able.append(Alternative(other, _needs(config.parallel, parallel), timeline(other)))
            except ValueError as error:
                reasons.append(str(error))
        if not any(a.name == name for a in able):
            unable[name] = next((why for why in reversed(reasons) if not why.startswith("parallel.vp=")), reasons[0])
    return sorted(able, key=lambda a: (a.timeline.run.step_s, a.config.parallel.vp)), unable


def _with(parallel: ParallelConfig, name: str, vp: int) -> ParallelConfig:
    same = vp == parallel.vp
    return dataclasses.replace(
        parallel, schedule=name, vp=vp, placement="auto", stage_layers=parallel.stage_layers if same else ()
    )


def _needs(before: ParallelConfig, after: ParallelConfig) -> str:
    words = [f"parallel.schedule={after.schedule}"]
    if after.vp != 1 or before.vp != 1:
        words.append(f"parallel.vp={after.vp}")
    if before.placement != "auto":
        words.append("parallel.placement=auto")
    if before.stage_layers and not after.stage_layers:
        words.append("parallel.stage_layers=[]")
    return " ".join(words)
