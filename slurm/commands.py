"""Asks Slurm. Only this module runs its programs: without a shell, and with a limit on the time of every call.

Where Slurm refuses, its own words are the error. A controller that is down for a moment is asked again; `NotAnswering`
is raised when it stays down.
"""

import getpass
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweep.common.errors import UserError

CALL_SECONDS = 60  # for one call of one program; the programs try a silent controller for 10 or 20 s themselves
IMPATIENT_SECONDS = 4  # for one call where the caller would rather go without an answer
ACCOUNT_SECONDS = 10  # for one call of sacct: its database may be busy, and there are other sources
SUBMIT_TRIES = 3  # where a submission was lost on its way and the controller answered again afterwards
PATIENCE_SECONDS = 60  # for how long a controller that does not answer is asked again
# How Slurm's programs say that they could not reach the controller, as opposed to what was asked being wrong.
UNREACHABLE = re.compile(
    "unable to contact|timed out|connection (failure|refused|reset|timed out)|zero bytes were transmitted|"
    "transport endpoint|standby mode|temporarily|unexpected message received|broken pipe",
    re.IGNORECASE,
)
# How they say, in several lines, that they found no slurm.conf.
UNCONFIGURED = re.compile("fetch_config|resolve_ctls|configuration source", re.IGNORECASE)
# The variables that a job gets from the launching shell. It gets others from its login shell and from
# cluster.slurm.environment.
PASSED_ON = re.compile(
    "PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_.*|TZ|XDG_CACHE_HOME|SLURM_CONF|(https?|no|all)_proxy|(HTTPS?|NO|ALL)_PROXY|"
    "HF_(HOME|ENDPOINT|HUB_CACHE|DATASETS_CACHE|HUB_OFFLINE)|WANDB_(MODE|BASE_URL|ENTITY|PROJECT)|"
    "SSL_CERT_FILE|REQUESTS_CA_BUNDLE|TRITON_CACHE_DIR|TORCHINDUCTOR_CACHE_DIR"
)
# Variables that change what Slurm's programs do.
OPTIONS_OF_SLURM = re.compile("S(LURM|BATCH|QUEUE|ACCT|CANCEL|RUN|CONTROL)_")


class NotAnswering(UserError):
    """Slurm's controller cannot be reached."""


class Refused(UserError):
    """Slurm will not do what was asked; the message is Slurm's own."""


@dataclass(frozen=True)
class Job:
    """An array element, or a job that is not an array, as it stands in the queue now."""

    job_id: int  # of the array
    index: int | None  # in the array; None of a job that is not an array
    name: str
    state: str  # PENDING, RUNNING, COMPLETING, …
    reason: str  # why it is pending, as Slurm puts it
    node: str
    run_seconds: int

    @property
    def element(self) -> str:
        """The name that Slurm's programs take: 123_4, or 123."""
        return f"{self.job_id}" if self.index is None else f"{self.job_id}_{self.index}"


@dataclass(frozen=True)
class Ended:
    """How an element or a job ended after its last start, from accounting."""

    state: str
    exit_code: int
    seconds: int
    node: str


def available() -> bool:
    """Whether Slurm's programs are on PATH."""
    return all(shutil.which(program) for program in ("sbatch", "squeue", "scancel", "scontrol"))


def submit(
    script: Path,
    name: str,
    arguments: Sequence[str] = (),
    passed_on: Iterable[str] = (),
    patience_seconds: float = PATIENCE_SECONDS,
) -> int:
    """Submit `script` with sbatch and return the job's id. Raises `Refused` with sbatch's words.

    `name` is the job's name, which no other job has. A call that did not come back may have arrived all the same, so
    the job is looked for by its name before it is submitted again. `passed_on` names variables of this shell that the
    job gets in addition to the usual ones.
    """
    environment = job_environment(passed_on)
    command = ["sbatch", "--parsable", *arguments, str(script)]
    for _ in range(SUBMIT_TRIES):
        done = _once(command, environment, CALL_SECONDS)
        if done is not None and done.returncode == 0:
            return int(done.stdout.strip().partition(";")[0])
        if not _unreachable(done):
            raise Refused(_words(command, done))
        if (found := find(name, since=time.time() - 3600, patience_seconds=patience_seconds)) is not None:
            return found
    raise NotAnswering(_words(command, done))


def find(name: str, since: float, patience_seconds: float = PATIENCE_SECONDS) -> int | None:
    """The id of the job with this name that is in the queue or ended after `since` (seconds since the epoch), or None.

    Slurm also gives ids to jobs that it refuses because of their resources; these are not found.
    """
    text = _ask(["squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F|%T|%r"], patience_seconds)
    for line in text.splitlines():
        job_id, state, reason = line.split("|")
        if not (state == "FAILED" and reason == "BadConstraints"):
            return int(job_id)
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
    text = _account([f"--name={name}", f"--starttime={start}", "--format=JobID,State,NodeList"]) or ""
    for line in text.splitlines():
        job_id, state, node = line.split("|")
        if not (state == "FAILED" and node == "None assigned"):
            return int(re.split(r"[_.+]", job_id)[0])
    return None


def queued(names: Iterable[str], patience_seconds: float = PATIENCE_SECONDS) -> list[Job]:
    """The jobs with these names that are in the queue, every array element by itself."""
    asked = ",".join(names)
    if not asked:
        return []
    form = "--format=%F|%K|%T|%r|%N|%M|%j"
    text = _ask(["squeue", "--noheader", f"--name={asked}", form], patience_seconds)
    return [job for line in text.splitlines() for job in _jobs(line)]


def count_of_user() -> int:
    """How many jobs of this user are in the queue, counting every array element."""
    return len(
        _ask(
            ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i"], PATIENCE_SECONDS
        ).split()
    )


def ended(job_ids: Iterable[int], since: float) -> dict[tuple[int, int | None], Ended] | None:
    """How elements (id of the array, index) and jobs (id, None) ended. None where accounting has no answer."""
    asked = ",".join(map(str, job_ids))
    if not asked:
        return {}
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
    form = "--format=JobID,State,ExitCode,ElapsedRaw,NodeList"
    text = _account([f"--jobs={asked}", f"--starttime={start}", form])
    if text is None:
        return None
    found: dict[tuple[int, int | None], Ended] = {}
    for line in text.splitlines():
        job_id, state, code, seconds, node = line.split("|")
        array, _, index = job_id.partition("_")
        word = state.split()[0]  # CANCELLED by 1000
        if word in ("PENDING", "RUNNING", "REQUEUED", "SUSPENDED"):
            continue
        for one in indices(index.strip("[]")) if index else [None]:
            found[int(array), one] = Ended(word, int(code.partition(":")[0]), int(seconds), node)
    return found


def cancel(targets: Iterable[str], patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Cancel jobs ("123") and elements ("123_4"). It is no error if some have ended already."""
    asked = list(targets)
    for start in range(0, len(asked), 500):
        _ask(["scancel", *asked[start : start + 500]], patience_seconds)


def limits(patience_seconds: float = PATIENCE_SECONDS) -> dict[str, str]:
    """Slurm's configuration, such as MaxArraySize."""
    text = _ask(["scontrol", "show", "config"], patience_seconds)
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def job_environment(passed_on: Iterable[str] = ()) -> dict[str, str]:
    """The variables of this shell that a job inherits: never all, so that no secret gets there by accident."""
    wanted = set(passed_on)
    return {name: value for name, value in os.environ.items() if name in wanted or PASSED_ON.fullmatch(name)}


def indices(text: str) -> list[int]:
    """The array indices in Slurm's notation: "3", "0-9", "1,4-6%2", "0-8:4"."""
    found: list[int] = []
    for part in text.partition("%")[0].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        found += range(int(first), int(last or first) + 1, int(step or 1))
    return found


def clock(text: str) -> int | None:
    """The seconds in Slurm's "1-02:03:04", "02:03:04" or "03:04"; None for UNLIMITED, INVALID and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _jobs(line: str) -> list[Job]:
    array, index, state, reason, node, run, name = line.split("|", 6)
    which = [None] if index == "N/A" else indices(index)
    return [Job(int(array), i, name, state, reason, node, clock(run) or 0) for i in which]


def _ask(command: list[str], patience_seconds: float) -> str:
    """What a program prints. It is called again while the controller does not answer, but once if without patience."""
    seconds = CALL_SECONDS if patience_seconds else IMPATIENT_SECONDS
    for _ in _while_patient(patience_seconds):
        done = _once(command, _environment(), seconds)
        if done is not None and done.returncode == 0:
            return done.stdout
        if not _unreachable(done):
            raise Refused(_words(command, done))
    raise NotAnswering(_words(command, done))


def _account(arguments: list[str]) -> str | None:
    """What sacct prints; None where there is no accounting or it does not answer."""
    if shutil.which("sacct") is None:
        return None
    who = f"--user={getpass.getuser()}"
    command = ["sacct", "--allocations", "--noheader", "--parsable2", who, *arguments]
    done = _once(command, _environment(), ACCOUNT_SECONDS)
    return done.stdout if done is not None and done.returncode == 0 else None


def _once(command: list[str], environment: dict[str, str], seconds: float) -> subprocess.CompletedProcess[str] | None:
    """Call a program once; None if it did not end in time."""
    try:
        return subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]} is not on PATH: jobs cannot be submitted from this machine; log in to one of the cluster, "
            "or use cluster=local"
        ) from error


def _while_patient(seconds: float) -> Iterator[None]:
    """Yield for each try, with growing waits between them, until `seconds` are over. Says once that it waits."""
    end = time.monotonic() + seconds
    wait = 1.0
    while True:
        yield
        left = end - time.monotonic()
        if left <= 0:
            return
        if wait == 1.0:
            print(f"Slurm's controller does not answer; trying again for {seconds:.0f} s", file=sys.stderr, flush=True)
        time.sleep(min(wait, left))
        wait = min(2 * wait, 15.0)


def _unreachable(done: subprocess.CompletedProcess[str] | None) -> bool:
    return done is None or UNREACHABLE.search(done.stderr) is not None


def _words(command: list[str], done: subprocess.CompletedProcess[str] | None) -> str:
    """What Slurm said, in one line."""
    if done is None:
        return f"{command[0]}: Slurm's controller did not answer"
    lines = [line.removeprefix(f"{command[0]}: ").removeprefix("error: ") for line in done.stderr.splitlines() if line]
    if UNCONFIGURED.search(done.stderr):
        return f"{command[0]}: found no slurm.conf; set SLURM_CONF to the path of the cluster's"
    return f"{command[0]}: {'; '.join(lines) or f'exit status {done.returncode}'}"


def _environment() -> dict[str, str]:
    """Our environment without what changes the programs' output, and with array indices in full (SLURM_BITSTR_LEN)."""
    kept = {name: value for name, value in os.environ.items() if not OPTIONS_OF_SLURM.match(name)}
    slurm = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    return {**kept, **slurm, "SLURM_BITSTR_LEN": "0", "LC_ALL": "C"}
