"""Launching on this machine: worker processes over CPU cores or GPUs.

Workers take families by claiming them, so nothing is handed out here: they are started, watched, and told to stop.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.live import Live

from sweep.common.checkout import ROOT
from sweep.common.devices import attention_backend, resolve_device
from sweep.common.errors import UserError
from sweep.common.exits import EXIT_AGAIN, EXIT_FAILED, FAILED, say
from sweep.common.files import Tail
from sweep.common.units import counted
from sweep.plan.packing import Execution, gpus, peers, processes_per_device
from sweep.plan.plan import Plan
from sweep.runs import launches
from sweep.runs.state import Queue, States
from sweep.runs.sweepdir import SweepDir
from sweep.workers.process import LOG, exit_status, kills, running, worker_environment
from sweep.workers.progress_table import ProgressTable

REFRESH_SECONDS = 1.0


class Mirror(Protocol):
    """What shows the training elsewhere while it runs, as `tracking/mirror_process.py` does for W&B."""

    def news(self) -> list[str]: ...

    def close(self) -> list[str]: ...


@dataclass
class Launched:
    """How a launch ended: its exit status, and how long it took."""

    status: int
    seconds: float


def launch(plan: Plan, sweep: SweepDir, console: Console, start_mirror: Callable[[], Mirror]) -> Launched:
    """Train what is missing; returns when all workers have ended, or were stopped by Ctrl-C with everything saved."""
    told_to_stop = threading.Event()
    with launches.announced(sweep.path, plan.only or None, told_to_stop.is_set):
        return _launch(plan, sweep, console, start_mirror, told_to_stop)


def _launch(
    plan: Plan, sweep: SweepDir, console: Console, start_mirror: Callable[[], Mirror], told_to_stop: threading.Event
) -> Launched:
    count = worker_count(plan)
    sweep.logs.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    workers: list[subprocess.Popen[bytes]] = []
    mirror = start_mirror()
    listen()
    try:
        logs = [Tail(_log(sweep, number)) for number in range(count)]  # from where they end now
        workers += (_start(plan, sweep, number, count) for number in range(count))
        _watch(plan, workers, logs, mirror, console)
    except BaseException as error:
        told_to_stop.set()
        for worker in workers:  # first of all: with the terminal gone, saying so fails
            worker.send_signal(signal.SIGTERM)
        if isinstance(error, KeyboardInterrupt):
            console.print("stopping: each worker finishes its step and saves; Ctrl-C again to kill them")
        _await(workers)
        if not isinstance(error, KeyboardInterrupt):
            raise
    for worker in workers:
        worker.wait()
    status = EXIT_AGAIN if told_to_stop.is_set() else exit_status(workers, if_both=EXIT_FAILED)
    launched = Launched(status, time.monotonic() - started)
    for line in mirror.close():
        console.print(line, highlight=False, soft_wrap=True)
    return launched


def listen() -> None:
    """Raise KeyboardInterrupt when told to end in any way: what we started would go on unseen without us.

    SIGINT is named too because Python leaves it ignored where the caller ignored it, as a shell does for what a script
    starts in the background.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def calibrate_where_it_pays(plan: Plan, console: Console) -> bool:
    """Measure shapes that have much to train; whether anything was measured. Training can do without.

    It runs in a process of its own, so that the device memory that it takes is free afterwards.
    """
    shapes = plan.worth_calibrating()
    if not shapes:
        return False
    trials = sum(len(family) for one in shapes for family in one.families)
    console.print(f"measuring what is faster for {trials} trials of {counted(len(shapes), 'shape', 'shapes')} …")
    process = multiprocessing.get_context("spawn").Process(target=_calibrate, args=(plan, shapes))
    try:
        with launches.announced(plan.sweep.path, plan.only or None):
            process.start()
            process.join()
    except BaseException:
        if process.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it has no session yet
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
        raise
    if process.exitcode:
        console.print("that broke off (see above); training goes on without what is missing", style="red")
    return True


def _calibrate(plan: Plan, shapes: list[Execution]) -> None:
    from sweep.workers.calibrate import calibrate

    os.setsid()  # Ctrl-C reaches our parent alone, which ends us and what we start
    try:
        calibrate(plan, shapes, say=say)
    except UserError as error:
        say(str(error))
        sys.exit(1)


def worker_count(plan: Plan) -> int:
    """Processes to start: as asked, else cores over threads, or for each GPU one or as many as a calibration found
    faster; never more than families to train."""
    options, families = plan.config.run, len(plan.left())
    if options.workers != "auto":
        return min(options.workers, families)
    if plan.device == "cuda":
        return min(peers(options, plan.device) * processes_per_device(plan.executions), families)
    return min(peers(options, plan.device), families)


def _start(plan: Plan, sweep: SweepDir, number: int, workers: int) -> subprocess.Popen[bytes]:
    """One of several. It runs from the checkout's root, wherever the launch was typed, and logs to its own file."""
    environment = worker_environment(number, workers, plan.config.run.threads, _devices(plan))
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    only = ["--families", ",".join(sorted(plan.only))] if plan.only else []
    path = _log(sweep, number)
    with open(path, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "sweep", "work", str(sweep.path), *only],
            env={**environment, LOG: str(path.resolve())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches us alone; we tell the workers
        )


def _devices(plan: Plan) -> list[str]:
    """The GPUs that the plan's workers share, as CUDA's programs are to name them."""
    if plan.device != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(gpus())]


def _log(sweep: SweepDir, number: int) -> Path:
    return sweep.logs / f"worker-{number}.log"


def _await(workers: list[subprocess.Popen[bytes]]) -> None:
    """The end of workers that were told to stop."""
    try:
        for worker in workers:
            worker.wait()
    except KeyboardInterrupt:
        for worker in workers:
            worker.kill()


def _watch(
    plan: Plan, workers: list[subprocess.Popen[bytes]], logs: list[Tail], mirror: Mirror, console: Console
) -> None:
    """Show progress until every worker has ended. Not on a terminal: one line whenever a trial is done."""
    board = ProgressTable(plan)
    said = set(board.done)
    killed: set[str] = set()

    def update() -> None:
        time.sleep(REFRESH_SECONDS)
        board.update()
        for line in itertools.chain.from_iterable(log.lines() for log in logs):
            if line.startswith(FAILED):
                console.print(line, style="red", highlight=False, soft_wrap=True)
        for line in sorted(set(kills(workers)) - killed):
            killed.add(line)
            console.print(line, style="red", highlight=False, soft_wrap=True)
        for line in mirror.news():
            console.print(line, highlight=False, soft_wrap=True)
        for trial_id in sorted(board.done - said):
            said.add(trial_id)
            if not console.is_terminal:
                console.print(
                    f"{len(said)}/{len(plan.trials)}  {board.outcome(trial_id)}", highlight=False, soft_wrap=True
                )

    if not console.is_terminal:
        while running(workers):
            update()
        update()
        return
    with Live(board, console=console, refresh_per_second=2, transient=True):
        while running(workers):
            update()
        update()


def check(plan: Plan) -> None:
    """The device and the backend are here, and the folders that a launch writes to can be written to."""
    resolve_device(plan.device)
    if plan.config.run.backend != "auto":  # asking imports torch
        attention_backend(plan.config.run.backend, plan.device)
    for key, folder in (("paths.runs", plan.config.paths.runs), ("paths.sweeps", plan.config.paths.sweeps)):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{key}={folder}: {error.strerror}") from error
        if not os.access(folder, os.W_OK):
            raise UserError(f"{key}={folder}: not writable; choose another folder")


def held_elsewhere(plan: Plan, queue: Queue) -> list[str]:
    """Families with missing trials that somebody else is training, and who."""
    states, names = States(plan.runs, queue), [family[0].family_id for family in plan.left()]
    return [f"{name}: {held}" for name in names if (held := states.held(name)) is not None]
