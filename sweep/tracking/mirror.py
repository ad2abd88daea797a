"""One trial's run directory, mirrored into one W&B run.

Rows go to W&B once and in order, whatever happens to either side. What counts is what W&B durably has: offline that is
read back from the files of earlier attempts, online the server says it. Rows beyond it are logged, so a run that was
requeued, resumed, or cut into offline pieces stays one run. While the family's trunk is trained, its rows up to this
trial's branch are this trial's.
"""

import contextlib
import itertools
import time
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from sweep.common import artefacts
from sweep.common.exits import EXIT_AGAIN
from sweep.common.files import read_json, write_json
from sweep.config.schema import WandbSection
from sweep.plan.trial import Trial
from sweep.runs import claim
from sweep.runs.claim import Claim
from sweep.runs.metrics import MetricsRow, Sample, Scale
from sweep.runs.planned import Facts
from sweep.runs.record import Record
from sweep.runs.rundir import Failure, RunDir
from sweep.tracking import client, run_content, wandb_files
from sweep.tracking.wandb_files import Fields

KEPT_SECONDS = 15.0  # until a file that has not ended is incomplete


class IncompleteFile(Exception):
    """wandb took rows that its file does not hold, most likely because the disk is full."""


@dataclass(frozen=True)
class Mirrored:
    """`mirrored.json`: W&B has all of a record, in this project and under these tags."""

    project: str
    entity: str | None
    tags: list[str]
    record: float  # when the record was finished, in seconds since the epoch
    last_step: int | None


@dataclass
class Mirror:
    """Follows one trial. `run` is open, and `claim` held, while there is something to mirror."""

    facts: Facts
    runs: Path
    tokens: Path
    section: WandbSection
    tags: list[str]
    run: Any = None  # of wandb
    claim: Claim | None = None  # so that no two processes mirror one trial
    step: int | None = None  # the last that W&B has; None: not looked up yet
    seen: tuple[Any, ...] = ()  # what the source of rows looked like when it was read
    samples_seen: int = 0
    failed_at: float = 0.0  # when the failure happened that was told last
    scale: Scale = field(default_factory=Scale)

    @property
    def trial_id(self) -> str:
        return self.facts.trial_id

    @cached_property
    def trial(self) -> Trial:
        """The whole trial, as its run directory has it."""
        return Trial.read(self.folder.trial)

    @property
    def folder(self) -> RunDir:
        return RunDir.of_trial(self.runs, self.trial_id)

    @property
    def place(self) -> Path:
        """Of the claim, and of the mark that W&B has all of the record: where, and under which tags."""
        return self.folder.path / "wandb"

    @property
    def mark(self) -> Path:
        return self.place / "mirrored.json"

    def record(self) -> Record | None:
        return Record.read(self.folder.record) if self.folder.record.exists() else None

    def is_settled(self) -> bool:
        """Whether W&B has this trial to its end."""
        if not self.mark.exists() or not self.folder.record.exists():
            return False
        mark, record = artefacts.read(Mirrored, self.mark), self.record()
        same = (mark.project, mark.entity) == (self.section.project, self.section.entity)
        return same and record is not None and mark.record == record.finished_at and set(self.tags) <= set(mark.tags)

    def new_rows(self) -> list[MetricsRow]:
        """Rows beyond the last step that W&B has; nothing where the file of rows did not change since the last call."""
        source, until = self._source()
        try:
            stat = source.stat()
        except FileNotFoundError:
            return []
        looks = (source, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if looks == self.seen:
            return []
        self.seen = looks
        if self.step is None:
            self.step = self.held()
        return _rows_after(source, self.step, until)

    def held(self) -> int:
        """The last step in the files of earlier attempts, -1 for none."""
        return wandb_files.last_step(self.runs, self.trial_id, self.section.project, self.section.entity)

    def _source(self) -> tuple[Path, int]:
        """Where the rows are, and the last step that is this trial's."""
        if self.folder.metrics.exists():
            return self.folder.metrics, 2**62
        trunk = RunDir.of_trunk(self.runs, self.facts.family_id)
        return trunk.metrics, self.trial.config.branch_step

    def take(self) -> bool:
        """Claim the trial's run in W&B; False while another process has it."""
        if self.claim is None:
            if claim.is_silent(self.place):  # its process is gone as far as anybody can tell
                claim.force_release(self.place)
            self.claim = claim.acquire(self.place)
        return self.claim is not None

    def open(self, mode: str, more_settings: Fields) -> None:
        """Begin the next attempt at the run, after the last step that W&B has of it."""
        env = read_json(self.folder.env) if self.folder.env.exists() else {}
        self.scale = run_content.scale_of(self.trial, self.tokens)
        earlier = wandb_files.of_run(self.runs, self.trial_id)
        held = self.held()
        run = client.start_run(
            self.section,
            self.runs,
            mode,
            run_id=self.trial_id,
            name=self.trial_id,
            group=self.facts.family_id,
            job_type="trial",
            tags=self.tags,
            config=run_content.config(self.trial, self.scale, env),
            more_settings=more_settings,
        )
        if mode == "online":
            held = run.starting_step - 1  # of the server
            for file in earlier:  # only online ones, see `has_offline_pieces`; what they did not send, this one does
                wandb_files.mark_up(file)
        run.define_metric("*", step_metric="tokens")
        self.run, self.step, self.seen, self.samples_seen = run, held, (), 0

    def has_offline_pieces(self) -> bool:
        """Whether offline attempts wait for a sync: then the next one is offline too, or steps come out of order."""
        files = wandb_files.of_run(self.runs, self.trial_id)
        return any(wandb_files.is_offline(file) and not wandb_files.is_up(file) for file in files)

    def advance(self) -> None:
        """Log what is new."""
        for row in self.new_rows():
            self.run.log(run_content.history(row, self.facts.flops_per_token, self.scale), step=row.step, commit=True)
            self.step = row.step
        samples = artefacts.read_lines(Sample, self.folder.samples)
        if len(samples) > self.samples_seen:
            self.samples_seen = len(samples)
            self._log_samples(samples)

    def _log_samples(self, samples: list[Sample]) -> None:
        """As a table. Online wandb asks the server about it at once; without an answer the table waits for the next."""
        wandb = client.wandb_module()
        rows = [[sample.step, sample.tokens, sample.prompt, sample.text] for sample in samples]
        with contextlib.suppress(wandb.Error, ValueError):
            self.run.summary["samples"] = wandb.Table(columns=[field.name for field in fields(Sample)], data=rows)

    def failure(self, since: float) -> Failure | None:
        """What the trial failed with after a time (seconds since the epoch), unless it was told."""
        return self.folder.failure(since=max(since, self.failed_at))

    def close(self, failure: Failure | None = None) -> None:
        """End the attempt: with the record if there is one, else as failed, else as stopped and to be continued.

        Raises IncompleteFile where wandb's own file lacks rows, and TimeoutError where the upload takes too long.
        """
        record = self.record()
        self.advance()
        if record is not None:
            self.run.summary.update(run_content.summary(record))
        elif failure is not None:
            self.run.summary.update({"status": "failed", "error": failure.line})
            self.failed_at = failure.time
        else:
            self.run.summary.update({"status": "stopped"})
            self.run.mark_preempting()
        run, self.run = self.run, None
        file, online = client.file_of(run), not run.offline
        run.finish(exit_code=0 if record is not None else 1 if failure is not None else EXIT_AGAIN)
        await_end(file)
        if online:
            wandb_files.mark_up(file)
        if record is not None:
            mark = Mirrored(self.section.project, self.section.entity, self.tags, record.finished_at, self.step)
            write_json(self.mark, asdict(mark))

    def release(self) -> None:
        """Let another process go on with the trial, or this one later. A run that is still open ends as failed."""
        run, self.run, self.seen = self.run, None, ()
        if run is not None:
            run.finish(exit_code=1)
        if self.claim is not None:
            self.claim.release()
            self.claim = None


def await_end(file: Path) -> None:
    """wandb says that a run has ended a moment before its file does."""
    give_up = time.monotonic() + KEPT_SECONDS
    while not wandb_files.content(file).ended:
        if time.monotonic() > give_up:
            raise IncompleteFile(f"{file} lacks the end of the run")
        time.sleep(0.1)


def _rows_after(path: Path, step: int, until: int) -> list[MetricsRow]:
    """The rows with step < row's step <= until, read from the end: all but a few were logged before."""
    rows = artefacts.iterate_lines(MetricsRow, path, last_first=True)
    new = itertools.takewhile(lambda row: row.step > step, rows)
    return [row for row in new if row.step <= until][::-1]
