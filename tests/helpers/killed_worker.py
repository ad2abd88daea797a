"""Runs workers that kill themselves at a given moment, for tests. Started as a script, never imported.

  killed_worker.py SWEEP MOMENTS.json     each moment in a process of its own, one after the other
  killed_worker.py SWEEP together N       N workers at once, each for as long as there is something to train

A moment is [where, length, step]: in which part of the program, of which curve (a trial's number of steps, or null for
the trunk), from which step on; of a stack, after which of its updates. Torch is imported once and the workers are
forked from it. Prints JSON lines: where each worker was killed and which step its curve went on from, and how it ended.
"""

import io
import json
import os
import resource
import signal
import sys
import types
from pathlib import Path

import torch

from sweep import cli
from sweep.common import files
from sweep.plan import plan as planning
from sweep.train import family, loop, stack
from sweep.train.curve import Curve

CALLS_PER_SECOND = 4  # of the training loop's clock, which a step asks once, and more often where it writes


class Killer:
    """Kills this process at a moment. `curve` is the one that is being trained."""

    def __init__(self, where: str, length: int | None, step: int):
        self.where, self.length, self.step = where, length, step
        self.curve: Curve | None = None
        self.resumed: list[int] = []
        self.stacked = 0  # updates of a stack

    def now(self, where: str) -> bool:
        if self.curve is None or where != self.where:
            return False
        return self.curve.length == self.length and self.curve.state.step >= self.step

    def kill(self, where: str) -> None:
        if self.now(where):
            went_on_from = self.resumed[-1]
            print(json.dumps({"killed": where, "step": self.curve.state.step, "from": went_on_from}), flush=True)
            os.kill(os.getpid(), {"SIGTERM": signal.SIGTERM}.get(where, signal.SIGKILL))

    def install(self) -> None:
        """Around the product's own functions, which know nothing of it."""
        stacked = stack.Stack.update
        train, update, evaluate, append = loop.train, loop.update, loop.evaluate, loop.append_json
        save, write, keep = torch.save, files.write, family.record_speed

        def train_this(curve, until):
            self.curve = curve
            self.resumed.append(curve.state.step)
            train(curve, until)

        def update_or_die(*args):
            result = update(*args)
            self.kill("update")
            self.kill("SIGTERM")
            return result

        def stack_or_die(whole):
            rates = stacked(whole)
            self.stacked += 1
            if self.where == "stack" and self.stacked == self.step:
                print(json.dumps({"killed": "stack", "step": self.step}), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return rates

        def evaluate_or_die(setup, windows_NT):
            if self.now("validation"):
                evaluate(setup, windows_NT[: len(windows_NT) // 2])
                self.kill("validation")
            return evaluate(setup, windows_NT)

        def append_or_die(path, row):
            if self.now("row"):
                with open(path, "ab") as file:
                    file.write(json.dumps(row).encode()[:40])
                self.kill("row")
            append(path, row)
            self.kill("after row")

        def save_or_die(content, file):
            if "optimizer" in content and self.now("checkpoint write"):
                whole = io.BytesIO()
                save(content, whole)
                file.write(whole.getvalue()[: whole.tell() // 2])
                file.flush()
                self.kill("checkpoint write")
            save(content, file)

        def write_or_die(path, fill):
            write(path, fill)
            if path.suffix == ".pt":
                self.kill("checkpoint written")

        def keep_or_die(*args, **named):
            keep(*args, **named)
            self.kill("before record")

        stack.Stack.update = stack_or_die
        loop.train, loop.update, loop.evaluate, loop.append_json = (
            train_this,
            update_or_die,
            evaluate_or_die,
            append_or_die,
        )
        torch.save, files.write, family.record_speed = save_or_die, write_or_die, keep_or_die


def count_time_in_calls() -> None:
    """The training loop's clock, so that checkpoints come at the same steps every time."""
    calls = iter(range(10**9))
    loop.time = types.SimpleNamespace(monotonic=lambda: next(calls) / CALLS_PER_SECOND)


def work(sweep: str, prepare) -> tuple[int, int]:
    """A forked worker's (pid, exit status); negative for a signal."""
    pid = os.fork()
    if pid == 0:
        prepare()
        status = cli.main(["work", sweep])
        sys.stdout.flush()
        os._exit(status)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_turn(sweep: str, moments: list) -> None:
    for where, length, step in moments:
        status = ended(work(sweep, prepared(where, length, step)))
        print(json.dumps({"ended": status, "where": where}), flush=True)


def prepared(where: str, length: int | None, step: int):
    """What a forked worker does first; for a full disk, `step` is the size in bytes that no file may exceed."""

    def prepare() -> None:
        count_time_in_calls()
        if where == "full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (step, step))
        else:
            Killer(where, length, step).install()

    return prepare


def together(sweep: str, count: int) -> None:
    pids = [work(sweep, lambda: None) for _ in range(count)]
    for pid in pids:
        print(json.dumps({"ended": ended(pid)}), flush=True)


if __name__ == "__main__":
    assert planning  # imported above, once, so that no worker has to
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports half of torch, once for all workers
    if sys.argv[2] == "together":
        together(sys.argv[1], int(sys.argv[3]))
    else:
        in_turn(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
