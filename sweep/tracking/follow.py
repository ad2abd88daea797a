"""The sidecar: a process beside the training ones that mirrors what they write, so that they never wait for W&B.

It reads run directories only. It follows the families that its siblings train (workers that the same parent started, or
the parent itself), and takes along finished trials that nobody is at. One wandb service serves all runs. Whatever goes
wrong with W&B is said in one line, starting with NEWS; nothing is lost by it, because the run directory has it all and
the next look, launch or sync goes on from what W&B has.
"""

import contextlib
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from sweep.common.errors import UserError
from sweep.config.schema import WandbSection
from sweep.runs import claim
from sweep.runs.claim import Holder
from sweep.runs.planned import Facts
from sweep.runs.rundir import Failure, RunDir
from sweep.runs.sweepdir import SweepDir
from sweep.tracking import account, client, run_content, wandb_files
from sweep.tracking.mirror import IncompleteFile, Mirror
from sweep.tracking.wandb_files import Fields

NEWS = "W&B: "
NICENESS = 10  # a tenth of a core where training wants them all; with less, runs would begin minutes late
BUSY_SHARE = 0.05  # of the time is spent on looking, at most: after a slow look comes a long rest
LONGEST_REST_SECONDS = 60.0  # between two looks, however long the first took
ELSEWHERE_SECONDS = 60.0  # until families that others train are looked at again
PATIENCE = {  # of questions that wandb waits for an answer to; what it streams is tried again for long
    "WANDB_X_GRAPHQL_RETRY_MAX": "5",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MIN_SECONDS": "1",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "8",
}
PAUSE_SECONDS = 60.0  # after wandb broke down
# By name: they are of wandb's private modules, which move.
SERVICE_GONE = ("HandleAbandonedError", "MailboxClosedError", "WandbServiceConnectionError")


class RestartService(Exception):
    """The server refused a run. wandb's service keeps the run's id in use, so going on takes a new service."""


@dataclass(frozen=True)
class Task:
    """What to follow. It travels to the sidecar as one line of JSON."""

    sweep: str | None  # the folder of the sweep whose plan holds the trials; None where `trials` are given
    trials: list[Facts] | None  # those outside of any sweep
    families: list[str] | None  # follow only these; None: all
    runs: str
    tokens: str
    sweeps: str
    wandb: WandbSection

    @classmethod
    def of_sweep(cls, sweep: SweepDir, families: list[str] | None = None) -> "Task":
        saved = sweep.settings()
        paths = saved.paths
        return cls(str(sweep.path), None, families, paths.runs, paths.tokens, paths.sweeps, saved.wandb)

    def planned(self) -> list[Facts]:
        """The trials to follow."""
        trials = self.trials if self.trials is not None else SweepDir(Path(str(self.sweep))).planned()
        return [trial for trial in trials if self.families is None or trial.family_id in self.families]

    def how_to_sync(self) -> str:
        if self.sweep is not None:
            return f"python -m sweep sync {self.sweep}"
        files = (f"offline-run-*-{trial.trial_id}/*.wandb" for trial in self.planned())  # by time, as they go up
        return " ".join(["wandb sync", *(f"{wandb_files.folder(Path(self.runs))}/{name}" for name in files)])


@dataclass
class Follower:
    """Looks at the run directories now and then, and brings W&B up to them."""

    task: Task
    say: Callable[[str], None] = lambda line: print(f"{NEWS}{line}", flush=True)
    mode: str = "offline"  # how new attempts begin
    on_open: Callable[[], None] = lambda: None  # wandb's service is there by then
    families: dict[str, list[Mirror]] = field(init=False)  # those that W&B does not have to their end
    not_before: dict[str, float] = field(default_factory=dict)  # when to look at a family again
    broken: set[str] = field(default_factory=set)  # trials whose files cannot be read
    offline: int = 0  # runs that were ended so
    said: set[str] = field(default_factory=set)
    since: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        task = self.task
        self.section = task.wandb
        self.runs = Path(task.runs)
        trials = task.planned()
        tags = run_content.tags(Path(task.sweeps), {trial.trial_id for trial in trials})
        self.families = defaultdict(list)
        for trial in trials:
            mirror = Mirror(trial, self.runs, Path(task.tokens), self.section, tags=tags[trial.trial_id])
            if not mirror.is_settled():
                self.families[trial.family_id].append(mirror)

    def choose_mode(self) -> str:
        """Online where asked for or possible; the reason where it is not. UserError where wandb is not there."""
        client.wandb_module()
        self.mode = "offline"
        if client.asked_mode(self.section) == "offline":
            return "as asked"
        try:
            has_key = client.has_key()
        except UserError as wrong:
            return str(wrong)
        if not has_key:
            return "no key; `wandb login` keeps one"
        self.mode = "online"
        return ""

    def look(self, last: bool = False) -> None:
        """Bring W&B up to the run directories; the last time, whoever trains, end every run."""
        for family_id in list(self.families):
            if not last and time.monotonic() < self.not_before.get(family_id, 0.0):
                continue
            self._look_at(family_id, last)
            if not self.families[family_id]:
                del self.families[family_id]

    def _look_at(self, family_id: str, last: bool) -> None:
        trunk = RunDir.of_trunk(self.runs, family_id).path
        if not last and not trunk.exists():
            return  # nobody has begun with it
        mirrors = self.families[family_id]
        holder = claim.current_holder(trunk) if trunk.exists() else None
        if holder is not None and holder.is_gone():
            holder = None
        trainer = holder if holder is not None and not last and is_sibling(holder) else None
        if holder is not None and trainer is None:  # others train it, and mirror it too; what we had open ends
            self.not_before[family_id] = time.monotonic() + ELSEWHERE_SECONDS
            mirrors = [mirror for mirror in mirrors if mirror.run is not None]
        for mirror in mirrors:
            try:
                self._bring_up(mirror, trainer, begin=trainer is not None or last)
            except UserError as error:  # of this trial's files: not the end of the others
                mirror.release()
                self.broken.add(mirror.trial_id)
                self.say(str(error))
        kept = [mirror for mirror in self.families[family_id] if mirror.trial_id not in self.broken]
        self.families[family_id] = [mirror for mirror in kept if not mirror.is_settled()]

    def _bring_up(self, mirror: Mirror, trainer: Holder | None, begin: bool) -> None:
        """One trial: open its run if there is something new (without a record only where `begin`), log, and end it if
        it has a record, has failed, or nobody here trains it any more."""
        has_record = mirror.folder.record.exists()
        if mirror.run is None:
            if not has_record and not (begin and mirror.folder.trial.exists() and mirror.new_rows()):
                return
            if not mirror.take():
                mirror.seen = ()
                return
            if mirror.is_settled():  # by the one who had it until now
                mirror.release()
                return
            self._open(mirror, trainer)
        failure = mirror.failure(self.since)
        if has_record or failure or trainer is None:
            self._close(mirror, failure)
        else:
            mirror.advance()

    def _open(self, mirror: Mirror, trainer: Holder | None) -> None:
        mode = self.mode
        if mode == "online" and mirror.has_offline_pieces():
            mode = "offline"
            self._say_once(f"runs that began offline go on so; upload them: {self.task.how_to_sync()}")
        try:
            mirror.open(mode, device_use(trainer))
        except Exception as error:
            if mode == "offline":
                raise
            self._go_offline(error)
            raise RestartService from error
        self.on_open()
        if not mirror.run.offline:
            self._say_once(f"online, {mirror.run.project_url}")

    def _close(self, mirror: Mirror, failure: Failure | None) -> None:
        offline = mirror.run.offline
        try:
            mirror.close(failure)
            self.offline += offline
        except TimeoutError as late:  # its file has everything and is not marked as up, so that sync goes on with it
            self._go_offline(late)
        finally:
            mirror.release()

    def _go_offline(self, error: Exception) -> None:
        if self.mode == "online":
            self.mode = "offline"
            self.say(f"offline from here on: {account.explain(error)}; upload later: {self.task.how_to_sync()}")

    def _say_once(self, line: str) -> None:
        if line not in self.said:
            self.said.add(line)
            self.say(line)

    def abandon(self) -> None:
        """wandb broke down: forget its service and its runs, so that the next look begins anew."""
        for mirrors in self.families.values():
            for mirror in mirrors:
                mirror.run, mirror.step = None, None
                mirror.release()
        wandb = client.wandb_module()
        with contextlib.suppress(wandb.Error, OSError, RuntimeError):  # of a service that is gone already
            wandb.teardown()


def device_use(trainer: Holder | None) -> Fields:
    """Settings for wandb's own measurements, of the process that trains and its devices; none where nobody does."""
    if trainer is None:
        return {"x_disable_stats": True, "x_disable_machine_info": True}
    try:
        environment = psutil.Process(trainer.pid).environ()
    except psutil.Error:
        environment = {}
    if "CUDA_MPS_PIPE_DIRECTORY" in environment:  # there devices have numbers of their own
        environment = dict(os.environ)
    ids = [int(name) for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.isdecimal()]
    return {"x_stats_pid": trainer.pid, "x_stats_gpu_device_ids": ids or None}


def is_sibling(holder: Holder) -> bool:
    """Whether a process was started by our parent, or is it."""
    here, parent = Holder.here(), os.getppid()
    if holder.place != here.place:
        return False
    try:
        return holder.pid == parent or psutil.Process(holder.pid).ppid() == parent
    except psutil.NoSuchProcess:
        return False


def give_way() -> None:
    """Let training have the cores that it wants, before this process and those that it started.

    Where Linux weighs sessions against each other, niceness counts within one only: wandb's service, and a sidecar that
    was started as ours are, lead sessions of their own, which get a weight too. See sched(7), "The autogroup feature".
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(OSError):  # gone; no such feature; or too soon after somebody's: at the next run
            weight = Path(f"/proc/{process.pid}/autogroup")
            if os.getsid(process.pid) == process.pid and not weight.read_text().endswith(f" {NICENESS}\n"):
                weight.write_text(str(NICENESS))


def follow(task: Task, over: threading.Event) -> int:
    """Mirror until `over`, then to the end; the exit status."""
    give_way()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Slurm signals every process of a job; we end when our parent says so
    try:
        follower = Follower(task, on_open=give_way)
        if not follower.families:
            return 0
        why = follower.choose_mode()
    except Exception as error:  # noqa: BLE001 — a wandb that is missing, or not as we know it
        traceback.print_exc()
        print(f"{NEWS}{explain(error)}; nothing is lost, later: {task.how_to_sync()}", flush=True)
        return 1
    if follower.mode == "online":
        over.wait(random.uniform(0, min(2.0, follower.section.every_seconds)))  # many launches start at once
    trouble, wait_until = "", 0.0
    while not over.is_set():
        began = time.monotonic()
        if began >= wait_until and (trouble := attempt(follower, said=trouble)):
            wait_until = began + PAUSE_SECONDS
        resting = min((time.monotonic() - began) / BUSY_SHARE, LONGEST_REST_SECONDS)
        over.wait(max(follower.section.every_seconds, resting))
    trouble = attempt(follower, said=trouble, last=True)
    if follower.offline:
        runs = f"{follower.offline} run{'s' if follower.offline > 1 else ''}"
        because = f" ({why})" if why else ""
        follower.say(f"{runs}, offline in {wandb_files.folder(follower.runs)}{because}; upload: {task.how_to_sync()}")
    return 1 if trouble else 0


def attempt(follower: Follower, said: str, last: bool = False, with_new_service: bool = False) -> str:
    """One look; what went wrong with wandb, which is said unless it was, and must not become training's trouble."""
    try:
        follower.look(last)
    except Exception as error:  # noqa: BLE001 — see above
        follower.abandon()
        # Slurm's signals reach wandb's service too, and end it; then a new one goes on.
        if (isinstance(error, RestartService) or service_is_gone(error)) and not with_new_service:
            return attempt(follower, said, last, with_new_service=True)
        traceback.print_exception(error)
        trouble = explain(error)
        if trouble != said:
            follower.say(f"{trouble}; nothing is lost, later: {follower.task.how_to_sync()}")
        return trouble
    return ""


def service_is_gone(error: Exception) -> bool:
    """Whether wandb's service ended under us, while it was written to or while its answer was awaited."""
    return isinstance(error, ConnectionError) or type(error).__name__ in SERVICE_GONE


def explain(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, IncompleteFile):
        return f"{error}: is the disk full?"
    return f"wandb broke down ({type(error).__name__}: {client.first_line(error)})"


def main(task: Task) -> int:
    """Follow until the end of stdin, which comes when the parent closes it, or dies."""
    os.environ.pop("WANDB_SERVICE", None)  # of whoever launched from a process that uses wandb itself
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    over = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.buffer.read()
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    return follow(task, over)
