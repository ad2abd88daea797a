"""A worker: trains a list of families in one process, each under its claim, until done or told to stop."""

import ctypes
import dataclasses
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sweep import environment
from sweep.config import RunOptions
from sweep.data.tokens import Tokens
from sweep.errors import UserError
from sweep.rundir import RunDir
from sweep.training import claim
from sweep.training.claim import Claim
from sweep.training.family import Family, train_trial
from sweep.training.loop import Setup, Stopped
from sweep.trial import Trial

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
FAILED = "failed: "  # how a worker's log says so; a launch passes such lines on
EXIT_DONE, EXIT_FAILED, EXIT_AGAIN = 0, 1, 75  # 75 is EX_TEMPFAIL: saved, run me again


class StopSignal:
    """Set by SIGTERM, Ctrl-C or SIGUSR2 (Slurm's warning): finish the step, save, exit with EXIT_AGAIN."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: now
        self.asked = True


@dataclass
class Worker:
    """What all families of one process share."""

    runs: Path
    tokens_root: Path
    options: RunOptions
    device: str
    on_row: Callable[[dict[str, Any]], None] = lambda row: None
    stop: StopSignal = field(default_factory=StopSignal)
    log: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)

    def run(self, families: list[list[Trial]]) -> int:
        """Train what is missing of each family that nobody else holds; the exit status."""
        prepare_torch(self.options, self.device)
        failed = False
        for trials in families:
            if self.stop.asked:
                return EXIT_AGAIN
            outcome = self.run_family(trials)
            failed |= outcome == "failed"
        return EXIT_AGAIN if self.stop.asked else EXIT_FAILED if failed else EXIT_DONE

    def run_family(self, trials: list[Trial]) -> str:
        """done, blocked, stopped, lost or failed; what went wrong is in the attempts and error.txt."""
        if all(RunDir.of_trial(self.runs, trial.trial_id).record.exists() for trial in trials):
            return "done"
        trunk = RunDir.of_trunk(self.runs, trials[0].family_id)
        held = claim.acquire(trunk.path)
        if held is None:
            return "blocked"
        attempt = {
            "attempt": held.generation,
            "family_id": trials[0].family_id,
            **dataclasses.asdict(held.holder),
        }
        try:
            trunk.attempt("start", time=time.time(), **attempt)
            outcome, error = self._train(trials, held)
            trunk.attempt("end", time=time.time(), attempt=held.generation, outcome=outcome, error=error)
        finally:
            held.release()
        return outcome

    def _train(self, trials: list[Trial], held: Claim) -> tuple[str, str | None]:
        """Train a claimed family. A trial's failure is told, written down, and kept from the others."""
        failures = []
        try:
            family = self._family(trials, held)
        except Exception as error:  # noqa: BLE001 — whatever ends one family must not end the others
            missing = [t for t in trials if not RunDir.of_trial(self.runs, t.trial_id).record.exists()]
            return "failed", self._failed((missing or trials)[0], error)
        for trial in family.missing():
            try:
                train_trial(family, trial)
            except Stopped:
                return ("lost" if held.lost else "stopped"), None
            except Exception as error:  # noqa: BLE001 — as above, of one trial
                failures.append(self._failed(trial, error))
        return ("failed", failures[0]) if failures else ("done", None)

    def _family(self, trials: list[Trial], held: Claim) -> Family:
        trial = trials[0]
        backend = environment.attention_backend(self.options.backend, self.device, trial.config.model.head_dim)
        if self.device == "cuda":
            self.log(f"{trial.family_id}: attention by {backend} (run.backend={self.options.backend})")

        def on_progress(news: dict[str, Any]) -> None:
            held.progress.update(news)
            self.on_row(news)

        def should_stop() -> bool:
            if held.lost:
                raise Stopped  # at once: the folder is another worker's now, and nothing may be saved there
            return self.stop.asked

        env = environment.describe(self.device, backend, dataclasses.asdict(self.options))
        setup = Setup(
            config=trial.config,
            flops_per_token=float(trial.flops_per_token.exact),
            tokens=Tokens.open(self.tokens_root, trial.config.data.fingerprint),
            options=self.options,
            device=self.device,
            backend=backend,
            execution_class=env["execution_class"],
        )
        return Family(
            setup=setup,
            trials=trials,
            runs=self.runs,
            env=env,
            should_stop=should_stop,
            on_progress=on_progress,
        )

    def _failed(self, trial: Trial, error: Exception) -> str:
        """Why a trial failed, in one line; the traceback, unless a person can correct it, is left in its folder."""
        by_person = isinstance(error, UserError)
        line = str(error) if by_person else f"{type(error).__name__}: {error}".splitlines()[0]
        text = line if by_person else "".join(traceback.format_exception(error))
        self.log(f"{FAILED}{trial.trial_id}: {line}")
        path = RunDir.of_trial(self.runs, trial.trial_id).error
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as full:
            self.log(f"{path}: cannot be written ({full.strerror}); it would say:\n{text}")
        return line


def prepare_torch(options: RunOptions, device: str) -> None:
    """Process-wide settings that decide speed and bits."""
    torch.set_num_threads(options.threads)
    if device == "cpu":
        _keep_freed_memory()
    if options.deterministic and device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # debugging aid


def _keep_freed_memory() -> None:
    """Have glibc keep freed blocks instead of giving them back to the kernel and faulting them in again at every step.

    5 to 24% of a step of the smallest models. Without glibc there is nothing to set.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            libc.mallopt(parameter, 2**28)
