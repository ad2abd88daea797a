"""A worker: trains a list of families in one process, each under its claim, until done or told to stop."""

import ctypes
import dataclasses
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from models.count import memory_bytes
from sweep import attempts, claim, environment, execution
from sweep.attempts import GIVEN_UP, Attempt
from sweep.claim import Claim, JobIsGone
from sweep.config import RunOptions
from sweep.data.tokens import Tokens
from sweep.errors import UserError
from sweep.estimate import Speeds
from sweep.exits import EXIT_AGAIN, EXIT_DONE, EXIT_FAILED, FAILED, say
from sweep.quantity import format_bytes
from sweep.rundir import RunDir
from sweep.training import checkpoint
from sweep.training.ceiling import flops_ceiling
from sweep.training.family import Family, train_trial
from sweep.training.loop import Setup, Stopped
from sweep.training.stack import Stack
from sweep.training.stack_worker import train_stack
from sweep.training.supervisor import DEVICE_SHARE, LOG, PEERS
from sweep.trial import Trial

COMPILED_SHAPES = 1000  # of one process, in all its micro-batches and stacks
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


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
    max_attempts: int | None = None  # without progress, before a family is given up
    job_is_gone: JobIsGone = claim.unknown
    on_row: Callable[[dict[str, Any]], None] = lambda row: None
    stop: StopSignal = field(default_factory=StopSignal)
    log: Callable[[str], None] = say
    since: float = field(default_factory=time.time)
    peers: int = field(default_factory=lambda: int(os.environ.get(PEERS, "1")))  # that share the families, us included

    def run(self, families: list[list[Trial]]) -> int:
        """Train what is missing of each family that nobody else holds; the exit status.

        A family that a process of this job's time before its requeue still holds is waited for: it ends soon.
        """
        prepare_torch(self.options, self.device)
        failed = False
        while families:
            outcomes = self._train_all(families)
            if self.stop.asked:
                return EXIT_AGAIN
            failed |= bool({"failed", GIVEN_UP} & set(outcomes.values()))
            blocked = [trials for trials in families if outcomes[trials[0].family_id] == "blocked"]
            families = [trials for trials in blocked if claim.is_of_our_job_before(self.trunk(trials).path)]
            if families:
                time.sleep(claim.HEARTBEAT_SECONDS)
        return EXIT_AGAIN if self.stop.asked else EXIT_FAILED if failed else EXIT_DONE

    def _train_all(self, families: list[list[Trial]]) -> dict[str, str]:
        """How each family went that was come to before the worker was told to stop."""
        stacks = self._stacks(families)
        outcomes: dict[str, str] = {}
        for trials in families:
            family_id = trials[0].family_id
            if family_id in outcomes or self.stop.asked:
                continue
            if family_id in stacks:
                outcomes |= train_stack(self, *stacks[family_id])
            else:
                outcomes[family_id] = self.run_family(trials)
        return outcomes

    def _stacks(self, families: list[list[Trial]]) -> dict[str, tuple[list[list[Trial]], int]]:
        """Of each family that is to be trained in a stack: all families of the stack, and its slots."""
        left, options = families, self.options
        if options.stack == "auto":  # a number is taken at its word, however few are left: bits are then as they were
            left = [[trial for trial in trials if not self._has_record(trial)] for trials in families]
            if device_share() < 1:  # calibrated were stacks that have a device to themselves
                options = dataclasses.replace(options, stack="off")
        speeds, name = Speeds.read(self.runs), environment.device_model(self.device)
        chosen = execution.executions([x for x in left if x], options, speeds, self.device, name, self.peers)
        found: dict[str, tuple[list[list[Trial]], int]] = {}
        for one in chosen:
            if one.way.stack:
                inside = {trials[0].family_id for trials in one.families}
                stack = [trials for trials in families if trials[0].family_id in inside]
                found |= dict.fromkeys(inside, (stack, one.way.stack))
        return found

    def run_family(self, trials: list[Trial]) -> str:
        """done, blocked, stopped, lost, failed or given up; what went wrong is in the attempts and error.txt."""
        try:
            held = self.enter(trials)
            if isinstance(held, str):
                return held
            try:
                outcome, line = self._train(trials, held)
            except BaseException:
                held.release()
                raise
            self.end(trials, held, outcome, line)
            return outcome
        except UserError as error:  # a damaged claim or list of attempts, a full disk: of this family alone
            self.failed(trials[0], error)
            return "failed"

    def enter(self, trials: list[Trial]) -> Claim | str:
        """Claim a family and write the attempt's start down; or how it went already, where it is not to be trained."""
        if all(map(self._has_record, trials)):
            return "done"
        trunk = self.trunk(trials)
        held = claim.acquire(trunk.path, self.job_is_gone)
        if held is None:
            return "blocked"
        try:
            standing = self._standing(trials)
            in_vain = attempts.without_progress(trunk, standing)
            trunk.attempt(
                "start",
                attempt=held.generation,
                time=time.time(),
                family_id=trials[0].family_id,
                **dataclasses.asdict(held.holder),
                worker_since=self.since,
                standing=standing,
                trials=[trial.trial_id for trial in trials],
                log=os.environ.get(LOG),
                device_share=device_share(),
            )
        except BaseException:
            held.release()
            raise
        if self.max_attempts is not None and len(in_vain) >= self.max_attempts:
            outcome, error = self._give_up(trials, in_vain)
            self.end(trials, held, outcome, error)
            return outcome
        return held

    def end(self, trials: list[Trial], held: Claim, outcome: str, error: str | None) -> None:
        """Write the attempt's end down and let the family go."""
        try:
            self.trunk(trials).attempt("end", time=time.time(), attempt=held.generation, outcome=outcome, error=error)
        finally:
            held.release()

    def trunk(self, trials: list[Trial]) -> RunDir:
        return RunDir.of_trunk(self.runs, trials[0].family_id)

    def _has_record(self, trial: Trial) -> bool:
        return RunDir.of_trial(self.runs, trial.trial_id).record.exists()

    def _standing(self, trials: list[Trial]) -> dict[str, Any]:
        """What is there of a family: records, and the steps of its checkpoints. Training on changes it."""
        runs = [RunDir.of_trial(self.runs, trial.trial_id) for trial in trials]
        steps = {run.path.name: checkpoint.step_of(run.checkpoint) for run in runs if run.checkpoint.exists()}
        return {
            "records": sum(run.record.exists() for run in runs),
            "trunk_steps": self.trunk(trials).stable_steps()[-1:],
            "trial_steps": steps,
        }

    def _give_up(self, trials: list[Trial], in_vain: list[Attempt]) -> tuple[str, str | None]:
        line = (
            f"given up after {len(in_vain)} attempts without progress (the last: "
            f"{in_vain[-1].error or in_vain[-1].outcome or 'killed'}); `python -m sweep retry SWEEP` tries again"
        )
        self.log(f"{FAILED}{trials[0].family_id}: {line}")
        return GIVEN_UP, line

    def _train(self, trials: list[Trial], held: Claim) -> tuple[str, str | None]:
        """Train a claimed family. A trial's failure is told, written down, and kept from the others."""
        failures = []
        try:
            family = self.family(trials, held)
        except Exception as error:  # noqa: BLE001 — whatever ends one family must not end the others
            missing = [trial for trial in trials if not self._has_record(trial)]
            return "failed", self.failed((missing or trials)[0], error)
        for trial in family.missing():
            try:
                while not _fits_in_memory(family, trial):
                    self._take_smaller_micro_batch(family, held)
            except Stopped:
                return ("lost" if held.lost else "stopped"), None
            except Exception as error:  # noqa: BLE001 — as above, of one trial
                failures.append(self.failed(trial, error))
        self.check_memory(family.setup)
        return ("failed", failures[0]) if failures else ("done", None)

    def family(self, trials: list[Trial], held: Claim, stack: Stack | None = None) -> Family:
        """A claimed family, to be trained alone or in a stack."""

        def on_progress(news: dict[str, Any]) -> None:
            held.progress.update(news)
            self.on_row(news)

        def should_stop() -> bool:
            if held.lost:
                raise Stopped  # at once: the folder is another worker's now, and nothing may be saved there
            return self.stop.asked

        setup, env = self.setup(trials, stack)
        return Family(
            setup=setup,
            trials=trials,
            runs=self.runs,
            env=env,
            should_stop=should_stop,
            on_progress=on_progress,
            asked=self.options,
        )

    def setup(self, trials: list[Trial], stack: Stack | None = None, slots: int = 1) -> tuple[Setup, dict[str, Any]]:
        """What a family's curves share, and its `env.json`. `slots` are of the stack that is to be made of it."""
        trial = trials[0]
        backend = environment.attention_backend(self.options.backend, self.device, trial.config.model.head_dim)
        if self.device == "cuda":
            self.log(f"{trial.family_id}: attention by {backend} (run.backend={self.options.backend})")
        options = self._options_that_fit(trials, slots) if stack is None else stack.setup.options
        stacked = None if stack is None else stack.slots
        env = environment.describe(self.device, backend, dataclasses.asdict(options), stacked)
        setup = Setup.of(
            trial,
            Tokens.open(self.tokens_root, trial.config.data.fingerprint),
            options,
            self.device,
            backend,
            execution_class=env["execution_class"],
            flops_ceiling=flops_ceiling(self.runs, self.device, trial.config.precision),
            shared_model=None if stack is None else stack.desk,
        )
        return setup, env

    def _options_that_fit(self, trials: list[Trial], slots: int) -> RunOptions:
        """The options, with the micro-batch that an earlier attempt on such a device found to fit, or that should."""
        size = attempts.micro_batch_that_fits(self.trunk(trials), environment.device_model(self.device))
        if size is None and self.device == "cuda":
            device_bytes = environment.device_memory_bytes(self.device) * device_share()
            size = execution.micro_batch(trials[0], self.options, self.device, device_bytes, slots)
        return self.options if size is None else dataclasses.replace(self.options, micro_batch_sequences=size)

    def check_memory(self, setup: Setup, slots: int = 1) -> None:
        """Say so where tensors took more of a GPU than the memory model, which chose the micro-batch, thinks."""
        if self.device != "cuda":
            return
        config = setup.config
        expected = slots * memory_bytes(config.model, setup.micro_batch, config.precision)["total"]
        used = torch.cuda.max_memory_allocated()
        if used > expected:
            self.log(f"memory: {format_bytes(used)} used where {format_bytes(expected)} were expected")
        torch.cuda.reset_peak_memory_stats()

    def _take_smaller_micro_batch(self, family: Family, held: Claim) -> None:
        """Go on with the next smaller divisor of the batch, recorded: it is part of the execution class."""
        setup, full = family.setup, family.setup.micro_batch
        if full == 1:
            raise UserError(
                "out of device memory with one sequence at a time; train it on a device with more memory, or with "
                "fewer workers on each"
            )
        size = next(size for size in range(full - 1, 0, -1) if setup.config.batch_sequences % size == 0)
        device_model = environment.device_model(self.device)
        family.trunk.attempt(
            "out of memory", attempt=held.generation, micro_batch_sequences=size, device_model=device_model
        )
        self.log(f"{family.family_id}: out of device memory with {full} sequences at a time; going on with {size}")
        setup.options = dataclasses.replace(setup.options, micro_batch_sequences=size)
        family.env = environment.describe(self.device, setup.backend, dataclasses.asdict(setup.options))
        setup.micro_batch, setup.execution_class = size, family.env["execution_class"]
        setup.model.train()
        setup.model.zero_grad(set_to_none=True)
        environment.free_memory(self.device)

    def failed(self, trial: Trial, error: Exception) -> str:
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


def device_share() -> float:
    """How much of its device this process was given by who started it."""
    return float(os.environ.get(DEVICE_SHARE, "1"))


def _fits_in_memory(family: Family, trial: Trial) -> bool:
    """Train a trial; False where the device's memory is too small. The error's frames, and their tensors, end here."""
    try:
        train_trial(family, trial)
    except torch.OutOfMemoryError:
        return False
    return True


def prepare_torch(options: RunOptions, device: str) -> None:
    """Process-wide settings that decide speed and bits."""
    torch.set_num_threads(options.threads)
    if options.compile:  # a process compiles the same code for many shapes; past its limit torch would quietly not
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = COMPILED_SHAPES
        torch._dynamo.config.fail_on_recompile_limit_hit = True
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
