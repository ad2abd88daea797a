"""Uploading a sweep's W&B files with `wandb sync`: a trial's attempts in order, several trials at a time, again later
what the server was too busy for, and at the end what is up and what is not.

`wandb sync` exits with 0 and marks a file as synced even where the upload broke off, and a file that is uploaded twice
has its rows twice. So its words are read, its marker is withdrawn where they say that something failed, and a file
that is being uploaded has a note beside it: where a killed sync left one, the server is asked first what it has.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sweep.common import files
from sweep.common.errors import UserError
from sweep.config.schema import WandbSection
from sweep.runs import claim
from sweep.runs.claim import Holder
from sweep.runs.rundir import RunDir
from sweep.runs.sweepdir import SweepDir
from sweep.tracking import account as accounts
from sweep.tracking import client, sweep_run, wandb_files
from sweep.tracking.account import Account
from sweep.tracking.follow import Follower, Task
from sweep.tracking.mirror import IncompleteFile
from sweep.tracking.wandb_files import Fields

WAITS_SECONDS = (10.0, 30.0, 60.0, 120.0, 300.0)  # before each new round, while the server is too busy
LONGEST_UPLOAD_SECONDS = 1800
FATAL = ("ERROR", "Traceback", "panic:", "Not authenticated")


@dataclass(frozen=True)
class Outcome:
    """What became of one run: `why` is empty if all of it is up. `again`: a later round may do better."""

    run_id: str
    why: str = ""
    again: bool = False


@dataclass
class Tally:
    """Runs by what became of them."""

    up: list[str] = field(default_factory=list)
    not_up: dict[str, str] = field(default_factory=dict)  # run id → why
    without: list[str] = field(default_factory=list)  # runs that have no W&B file


def sync(
    sweep: SweepDir, section: WandbSection, account: Account, parallel: int = 4, say: Callable[[str], None] = print
) -> Tally:
    """Upload what is not up yet of a sweep's trials and of its own run. `say` hears each step as a line."""
    runs = Path(sweep.settings().paths.runs)
    names = [line.trial_id for line in sweep.planned()]
    tally, waiting = Tally(), []
    for name in (*names, sweep_run.run_id(sweep.name)):
        found = wandb_files.of_run(runs, name)
        if not found:
            tally.without.append(name)
        elif all(map(wandb_files.is_up, found)):
            tally.up.append(name)
        else:
            waiting.append(name)
    say(f"{len(tally.up)} of {len(names) + 1} runs are up already, {len(waiting)} to upload")
    upload = Upload(runs, section, account, sweep.logs / "wandb-sync.log")
    total = len(tally.up) + len(waiting)
    for outcome in rounds(waiting, upload.run, parallel, say):
        if outcome.why:
            tally.not_up[outcome.run_id] = outcome.why
        else:
            tally.up.append(outcome.run_id)
        say(f"  {len(tally.up)}/{total} {outcome.run_id}: {outcome.why or 'up'}")
    return tally


def catch_up(sweep: SweepDir, say: Callable[[str], None] = print) -> None:
    """Write, as offline files, the trials with a record that W&B has nothing of, or not all: those trained with
    wandb.mode=off, or whose mirror was killed."""
    try:
        Follower(Task.of_sweep(sweep), say=say).look(last=True)
    except IncompleteFile as error:
        raise UserError(f"{error}; free some space, and run the same again") from error


def rounds(
    waiting: list[str], upload: Callable[[str], Outcome], parallel: int, say: Callable[[str], None]
) -> Iterator[Outcome]:
    """The last outcome of each run. As soon as the server is too busy for one, the others wait for the next round."""
    for wait in (*WAITS_SECONDS, None):
        postponed: list[Outcome] = []

        def once(run_id: str, postponed: list[Outcome] = postponed) -> Outcome:
            return Outcome(run_id, postponed[0].why, again=True) if postponed else upload(run_id)

        with ThreadPoolExecutor(parallel) as pool:
            for done in as_completed([pool.submit(once, run_id) for run_id in waiting]):
                outcome = done.result()
                if outcome.again and wait is not None:
                    postponed.append(outcome)
                else:
                    yield outcome
        if not postponed or wait is None:
            return
        waiting = sorted(outcome.run_id for outcome in postponed)
        pause = wait * random.uniform(0.8, 1.2)  # several people's syncs must not come back together
        say(f"  {postponed[0].why.partition(';')[0]}; {len(waiting)} runs wait for {pause:.0f} s")
        time.sleep(pause)


@dataclass(frozen=True)
class Upload:
    """How runs are uploaded: from where, to where, and where `wandb sync` is listened to."""

    runs: Path
    section: WandbSection
    account: Account
    log: Path

    def run(self, run_id: str) -> Outcome:
        """Upload a run's files in order, up to the first that fails: no later row may come before its rows."""
        if claim.held_by(RunDir.of_trial(self.runs, run_id).path / "wandb") is not None:
            return Outcome(run_id, "is being trained; sync again when it has ended")
        for file in wandb_files.of_run(self.runs, run_id):
            outcome = Outcome(run_id) if wandb_files.is_up(file) else self._file(run_id, file)
            if outcome.why:
                return outcome
        return Outcome(run_id)

    def _file(self, run_id: str, file: Path) -> Outcome:
        note = Note(file)
        begun = note.path.exists() or not wandb_files.is_offline(file)
        if holder := note.take():
            return Outcome(run_id, f"is being uploaded by {holder}")
        rest = None
        try:
            there = self._rows_there(run_id, file) if begun else -1
            if there >= 0:
                rest = supplement(self.section, self.runs, run_id, file, there)
                wandb_files.mark_up(file)
                outcome = Outcome(run_id)
            else:
                outcome = self._send(run_id, file)
        except UserError as error:
            return Outcome(run_id, str(error), again=is_passing(str(error)))
        if not outcome.why:
            note.path.unlink()
        return self._file(run_id, rest) if rest else outcome

    def _send(self, run_id: str, file: Path) -> Outcome:
        entity = written_to(file)[0] or self.account.entity
        command = [sys.executable, "-m", "wandb", "sync", "--include-online", "--entity", entity, str(file.absolute())]
        try:
            said = subprocess.run(
                command,
                env=os.environ | accounts.PATIENCE | {"WANDB_MODE": "online", "WANDB_SILENT": "false"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LONGEST_UPLOAD_SECONDS,
            ).stdout
        except subprocess.TimeoutExpired:
            return Outcome(run_id, f"took longer than {LONGEST_UPLOAD_SECONDS} s", again=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a") as log:
            log.write(said)
        why = failure(said)
        if why:
            file.with_name(f"{file.name}.synced").unlink(missing_ok=True)  # wandb's own mark, which says otherwise
        elif not wandb_files.is_up(file):
            why = f"wandb sync did not upload it, and did not say why; see {self.log}"
        return Outcome(run_id, why, again=bool(why) and is_passing(why))

    def _rows_there(self, run_id: str, file: Path) -> int:
        """The last step that the server has of a file's rows, after an upload that broke off; -1 if it has none."""
        entity, project = written_to(file)
        path = f"{entity or self.account.entity}/{project}/{run_id}"
        steps = [row["_step"] for row in _rows(file)]
        try:
            last = self.account.api.run(path).lastHistoryStep
        except self.account.errors as error:
            if "not find" in str(error):
                return -1
            raise UserError(accounts.explain(error)) from error
        return last if steps and last >= steps[0] else -1


def failure(said: str) -> str:
    """Why an upload failed, by what `wandb sync` said; empty if it did not."""
    lines = [line.removeprefix("wandb: ").strip() for line in said.splitlines()]
    bad = [line.removeprefix("ERROR").strip() for line in lines if line.startswith(FATAL)]
    if any("Fatal error while uploading data" in line for line in bad):
        return "the server broke off the upload"
    return accounts.explain(" ".join(bad)) if bad else ""


def is_passing(why: str) -> bool:
    """Whether a failure is worth another try soon."""
    return why.startswith(("the server", "cannot be reached"))


def supplement(section: WandbSection, runs: Path, run_id: str, file: Path, last: int) -> Path:
    """A new offline file with what the server lacks of `file`: its rows after the step `last`, and its summary.

    Rows that are sent twice are there twice, so the file itself cannot be sent again. Tables and pictures stay behind.
    """
    run = client.start_run(section, runs, "offline", run_id=run_id)
    for row in _rows(file):
        if row["_step"] > last:
            run.log(_plain(row), step=row["_step"])
    code = 1
    for record in wandb_files.read(file):
        if record["type"] == "summary":
            run.summary.update(_plain(record["summary"].get("update", {})))
        elif record["type"] == "exit":
            code = record["exit"].get("exit_code", 0)
    path = client.file_of(run)
    sweep_run.finish(run, code)
    return path


def _rows(file: Path) -> list[Fields]:
    return [record["history"]["item"] for record in wandb_files.read(file) if record["type"] == "history"]


def _plain(row: Fields) -> Fields:
    """Numbers and words; what W&B adds itself begins with an underscore, parts of media have a dot in their names."""
    return {name: value for name, value in row.items() if not name.startswith("_") and "." not in name}


def written_to(file: Path) -> tuple[str | None, str]:
    """(entity, or None for the key's own; project) that a file was written for."""
    content = wandb_files.content(file)
    if content.project is None:
        raise UserError(f"{file}: holds no run; remove its folder")
    return content.entity, content.project


@dataclass(frozen=True)
class Note:
    """Lies beside a file while it is being uploaded, and stays where that ends badly."""

    file: Path

    @property
    def path(self) -> Path:
        return self.file.with_name(f"{self.file.name}.uploading")

    def take(self) -> str:
        """Write the note, unless another process that may live holds it: that one's name."""
        ours = Holder.here()
        if files.create_json(self.path, asdict(ours)):
            return ""
        theirs = self._holder()
        if theirs is None or (theirs.place, theirs.pid) == (ours.place, ours.pid) or (gone := theirs.is_gone()):
            files.write_json(self.path, asdict(ours))
            return ""
        elsewhere = f" on {theirs.host}; if it is gone, remove {self.path}" if gone is None else ""
        return f"process {theirs.pid}{elsewhere}"

    def _holder(self) -> Holder | None:
        """None for a note of an older version, which does not say enough of its process."""
        try:
            return Holder.read(self.path)
        except UserError:
            return None
