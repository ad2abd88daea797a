"""Drafts a submission: its elements, arrays, the jobs beside them, and the text of every script. It writes nothing."""

import math
import sys
import time
import uuid
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from slurm import elements, script
from slurm.code_snapshot import Snapshot
from slurm.elements import Element
from slurm.provisional import is_provisional
from slurm.script import ArrayJob, Place
from slurm.submission import ArrayTask, Chunk, JobRef, Submission, folder_of, submissions
from sweep.config.schema import SlurmSection
from sweep.plan.plan import Plan
from sweep.plan.trial import Trial


@dataclass
class Draft:
    """A submission that is not made yet, with the content of its files."""

    submission: Submission
    elements: list[Element]
    tasks: list[ArrayTask]
    scripts: dict[str, str]  # name of the file -> text
    left_out: int  # families for which the queue has no room


@dataclass(frozen=True)
class Limits:
    """What Slurm takes: array indices lie below `array_size`, and `room` more jobs may be queued."""

    array_size: int
    room: float = math.inf


def draft(
    plan: Plan,
    families: list[list[Trial]],
    command: list[str],
    overrides: list[str],
    code: Snapshot,
    limits: Limits,
    report: bool = True,
) -> Draft:
    """The next submission of the plan's sweep, for these families."""
    sweep = plan.sweep
    slurm = plan.config.cluster.slurm
    unprepared = any(is_provisional(trial) for family in families for trial in family)
    room = max(1, limits.room - unprepared - report)
    asked = elements.needs(plan, families)
    packed = elements.elements(asked, slurm, plan.config.run.threads, plan.device_bytes, most=room)
    taken = packed if len(packed) <= room else packed[: int(room)]
    number = max((submission.number for submission in submissions(sweep)), default=0) + 1
    stem, tag = f"{sweep.name}.{number:03d}", uuid.uuid4().hex[:8]
    submission = Submission(
        folder=folder_of(sweep) / f"{number:03d}",
        number=number,
        tag=tag,
        time=time.time(),
        sweep=str(sweep.path),
        command=command,
        overrides=overrides,
        code=str(code.folder),
        commit=code.commit,
        dirty=code.dirty,
        unprepared=unprepared,
        slurm=slurm,
        chunks=[
            Chunk(f"{stem}.{k}-{tag}", f"array-{k}.sbatch", None, group, (first, last))
            for k, (group, first, last) in enumerate(chunked(taken, limits.array_size))
        ],
        prepare=JobRef(f"{stem}.prepare-{tag}", "prepare.sbatch") if unprepared else None,
        collector=JobRef(f"{stem}.collector-{tag}", "collector.sbatch") if report else None,
    )
    tasks = [_task(number, element, plan, unprepared) for number, element in enumerate(taken)]
    left_out = sum(len(element.families) for element in packed[len(taken) :])
    return Draft(submission, taken, tasks, _scripts(submission, taken, plan.runs, slurm), left_out)


def _scripts(submission: Submission, elements: list[Element], runs: Path, slurm: SlurmSection) -> dict[str, str]:
    """The text of each job's script, by the script's name."""
    place = Place(
        sweep=Path(submission.sweep),
        submission=submission.folder,
        runs=runs,
        code=Path(submission.code),
        launched_from=Path.cwd(),
        python=slurm.python or sys.executable,
    )
    texts = {}
    if submission.prepare:
        texts[submission.prepare.script] = script.prepare(submission.prepare.name, place, slurm)
    for chunk in submission.chunks:
        texts[chunk.script] = script.array(_array_job(chunk, elements, slurm), place, slurm)
    if submission.collector:
        texts[submission.collector.script] = script.collector(submission.collector.name, place, slurm)
    return texts


def chunked(elements: list[Element], array_size: int) -> list[tuple[str, int, int]]:
    """(group, first, last) of each array: neighbouring elements of one group, at most `array_size` of them.

    Slurm limits the array *index* (MaxArraySize), so every array begins at index 0.
    """
    found = []
    for group, members in groupby(range(len(elements)), key=lambda number: elements[number].group):
        numbers = list(members)
        for start in range(0, len(numbers), array_size):
            part = numbers[start : start + array_size]
            found.append((group, part[0], part[-1]))
    return found


def _array_job(chunk: Chunk, elements: list[Element], slurm: SlurmSection) -> ArrayJob:
    first, last = chunk.tasks
    like = elements[first]
    at_once = slurm.max_running and max(1, slurm.max_running * (last - first + 1) // len(elements))
    return ArrayJob(
        name=chunk.name,
        first=first,
        last=last,
        seconds=like.bucket.seconds,
        memory_gib=like.memory_gib,
        partition=like.bucket.partition,
        qos=like.bucket.qos,
        at_once=at_once,
        shares_gpus=0 < slurm.gpus < max(element.workers for element in elements[first : last + 1]),
    )


def _task(number: int, element: Element, plan: Plan, unprepared: bool) -> ArrayTask:
    """A line of tasks.jsonl. It names the points of the grid that it stands for where their ids are not known yet."""
    inside = set(element.families)
    points = [" ".join(plan.points[trial.trial_id]) for trial in plan.trials if trial.family_id in inside]
    return ArrayTask(
        task=number,
        group=element.group,
        families=element.families,
        workers=element.workers,
        seconds=round(element.seconds, 1),
        points=points if unprepared else [],
    )
