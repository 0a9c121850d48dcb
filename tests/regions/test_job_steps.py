"""A region that is compiling says which step its worker is in, in both modes."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import aoti_eager
from aoti_eager import FusionReport, fuse
from aoti_eager._commands.region_report import _row
from aoti_eager._compile_service.job_progress import JobProgress
from aoti_eager._compile_service.steps import Step

from ..support.regions import Policy, inputs, seeded, served
from ..support.shipped import NOT_FASTER

pytestmark = [pytest.mark.native, pytest.mark.compiles]


class Watched:
    """What a report, ``explain`` and ``stats`` say when a step begins."""

    def __init__(self, model: nn.Module, report: FusionReport, x: torch.Tensor) -> None:
        self.model, self.report, self.x = model, report, x
        self.steps: list[str] = []

    def look(self) -> None:
        """Check that all of them say the same."""
        (region,) = self.report.regions
        assert region.state == "compiling"
        step = region.step.rpartition(", ")[0]
        assert str(region).startswith(f"(the model)  {region.name}  compiling: {step}, ")
        assert _row("Root", "", 1, region)[2].startswith(f"compiling: {step}, ")
        with torch.no_grad():
            explained = aoti_eager.explain(self.model, self.x)
        begins = f"its library is being made in the background: {step}, "
        assert (explained.verdict, explained.message[: len(begins)]) == ("miss", begins)
        (op,) = region.ops
        (told,) = aoti_eager.stats()[op].steps
        assert told.startswith(f"{step}, ")
        self.steps.append(step)


@pytest.mark.parametrize("mode", ["background", "sync"])
def test_a_region_that_is_compiling_says_the_step_of_its_worker(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert aoti_eager.wait()  # No step of another test's is to be seen.
    sizes = {"background": 19, "sync": 21}
    model, x = seeded(lambda: Policy(7, sizes[mode])), inputs(3, 7)
    problems: list[AssertionError] = []
    tell = JobProgress.tell

    def telling(progress: JobProgress, step: Step | None) -> None:
        tell(progress, step)
        try:
            watched.look()
        except AssertionError as error:
            problems.append(error)

    with (
        aoti_eager.config.scope(mode=mode, gate=True),
        fuse(model) as report,
    ):
        watched = Watched(model, report, x)
        monkeypatch.setattr(JobProgress, "tell", telling)
        for _ in range(3):
            model(x)
        aoti_eager.wait()
        model(x)
        assert problems == []
        region = report.regions[0]
        # The gate is on, because measuring is a step: the library may lose.
        assert region.state in ("comparing", "served") or region.reason in NOT_FASTER, region
        assert region.step == ""
        assert aoti_eager.stats()[region.ops[0]].steps == ()
    names = [step.rpartition(", ")[2] for step in watched.steps]
    assert names[0] == "waiting for a worker"
    made = [name for name in names[1:] if name != "importing Inductor"]
    steps = ["tracing", "generating code", "compiling C++", "trying", "measuring"]
    assert made[: len(steps)] == steps
    # Times of a busy machine are taken once more.
    assert set(made[len(steps) :]) <= {"waiting for a worker", "measuring"}
    numbered = [one.partition(", ")[0] for one in watched.steps if one.startswith("step")]
    assert all(re.fullmatch(r"step \d of \d", one) for one in numbered)


def test_a_region_that_waits_for_a_worker_says_that_it_is_queued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two models, one worker: while the first one's library is made, the second one waits."""
    assert aoti_eager.wait()
    first, second, x = seeded(lambda: Policy(7, 23)), seeded(lambda: Policy(7, 25)), inputs(3, 7)
    seen: list[str] = []
    tell = JobProgress.tell

    def telling(progress: JobProgress, step: Step | None) -> None:
        tell(progress, step)
        states = [report.regions[0] for report in reports]
        seen.extend(one.step for one in states if one.state == "compiling")

    with (
        aoti_eager.config.scope(mode="background", workers=1),
        fuse(first) as one,
        fuse(second) as other,
    ):
        reports = one, other
        monkeypatch.setattr(JobProgress, "tell", telling)
        for _ in range(3):
            first(x), second(x)
        served(one, lambda: first(x))
        served(other, lambda: second(x))
    assert "queued" in seen
