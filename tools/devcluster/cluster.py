"""A real Slurm on this one machine: its configuration, its daemons, and how they start and end.

A cluster is a folder. It holds the configuration, the munge key and socket, the database, state, spool, logs, and a
file `pid/<daemon>` for each daemon, so that several clusters never mix and taking one down leaves nothing.
"""

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import string
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sweep.common.errors import UserError

SETTINGS = "devcluster.json"
TEMPLATES = ("slurm.conf", "accounting.conf", "gres.conf", "slurmdbd.conf", "users.sql")  # beside this file
FOR_ALL = ("slurm.conf", "accounting.conf", "gres.conf")  # to read; passwords and keys are in the others
CONTROLLER = "slurmctld"
CLUSTER = "devcluster"
PACKAGES = {  # program -> Debian package
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
}
FOR_ACCOUNTING = ("slurmdbd", "mariadbd")
ACCOUNT = "research"  # besides Slurm's own `root`
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
LONGEST_FOLDER = 80  # characters, of the 107 that a socket's path may have
SECONDS_TO_START = 60  # for each daemon, on a slow machine
SECONDS_TO_END = 10  # from SIGTERM to SIGKILL


@dataclass(frozen=True)
class Settings:
    nodes: int = 2
    gpus: int = 2  # of each node; none of them is real
    cpus: int = 8  # of each node, whatever the machine has
    memory_mb: int = 256_000  # of each node; nothing enforces it
    accounting: bool = True
    max_array_size: int = 11
    requeue_seconds: int = 10  # from a requeue until the job may start again


@dataclass(frozen=True)
class Cluster:
    folder: Path

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def exists(self) -> bool:
        return (self.folder / SETTINGS).is_file()

    @property
    def settings(self) -> Settings:
        return Settings(**json.loads((self.folder / SETTINGS).read_text())["settings"])

    @property
    def ports(self) -> dict[str, int]:
        """The TCP port of each daemon; munged has a socket instead."""
        return json.loads((self.folder / SETTINGS).read_text())["ports"]

    @property
    def nodes(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.settings.nodes + 1)]

    @property
    def daemons(self) -> list[str]:
        """The names of the daemons, in the order in which they start."""
        accounting = ["mariadbd", "slurmdbd"] if self.settings.accounting else []
        return ["munged", *accounting, CONTROLLER, *self.nodes]

    def up(self, settings: Settings) -> None:
        """Write the configuration and start everything. Returns when all nodes are idle.

        Raises UserError that says what failed, with the end of its log. Then no daemon is left, but the logs are.
        """
        _require_root_and_packages(settings)
        if self.exists and self.running():
            raise UserError(f"{self.folder}: a cluster runs here already; end it with `down --folder {self.folder}`")
        self._write(settings)
        try:
            for daemon in self.daemons:
                self.start(daemon)
            self._wait_for("the nodes", self._all_idle, log=f"{CONTROLLER}.log")
        except BaseException:
            self.end_everything()
            raise

    def down(self) -> None:
        """End jobs and daemons, and remove the folder."""
        if not self.exists:
            raise UserError(f"{self.folder}: no cluster here")
        self.end_everything()
        shutil.rmtree(self.folder)

    def start(self, daemon: str) -> None:
        """Start one daemon, unless it runs, and wait until it answers."""
        if self.pid(daemon):
            return
        if daemon == "mariadbd" and not (self.folder / "mysql").exists():
            self._create_database()
        place = self._place(daemon)
        place.mkdir(exist_ok=True)
        with open(self.folder / "log" / f"{daemon}.log", "ab") as output:
            process = subprocess.Popen(
                self._command(daemon),
                cwd=place,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._pid_file(daemon).write_text(f"{process.pid}\n")
        self._wait_for(daemon, lambda: self._answers(daemon), log=f"{daemon}.log", process=process)
        if daemon == "slurmdbd":
            self._add_accounts()

    def stop(self, daemon: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End one daemon, if it runs. Jobs on a node outlive its slurmd, as they do anywhere."""
        pid = self.pid(daemon)
        if not pid:
            return
        os.kill(pid, how)
        deadline = time.monotonic() + SECONDS_TO_END
        while self.pid(daemon):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def crash(self, node: str) -> None:
        """What a node's power failure does: slurmd, its job steps and their processes are gone without a word."""
        self.stop(node, signal.SIGKILL)
        self._kill_jobs([node])

    def end_everything(self) -> None:
        """What starts jobs first, then the jobs, then the rest."""
        for daemon in (CONTROLLER, *self.nodes):
            self.stop(daemon, signal.SIGKILL)
        self._kill_jobs(self.nodes)
        for daemon in reversed(self.daemons):
            self.stop(daemon)

    def pid(self, daemon: str) -> int | None:
        """The process of a daemon; None where it does not run."""
        try:
            pid = int(self._pid_file(daemon).read_text())
        except (FileNotFoundError, ValueError):
            return None
        program = Path(_read(pid, "cmdline").partition("\0")[0]).name
        is_it = program == ("slurmd" if daemon in self.nodes else daemon)
        return pid if is_it and _working_folder(pid).startswith(f"{self.folder}/") else None  # pids are used again

    def running(self) -> list[str]:
        return [daemon for daemon in self.daemons if self.pid(daemon)]

    def node_states(self) -> dict[str, str]:
        """Each node's state as Slurm puts it: idle, mixed, allocated, down, …, with `*` where it does not respond."""
        lines = self.ask("sinfo", "--noheader", "--Node", "--partition=low", "--format=%N %T").splitlines()
        return {node: state for node, state in (line.split() for line in lines)}

    def environment(self) -> dict[str, str]:
        """The environment for Slurm's commands: it names this cluster, and nothing of a job around us."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        return kept | {"PATH": PATH, "SLURM_CONF": str(self.conf)}

    def ask(self, *command: str) -> str:
        """The standard output of a Slurm command. Raises UserError with what it said where it fails."""
        ended = subprocess.run(command, env=self.environment(), capture_output=True, text=True, check=False)
        if ended.returncode:
            said = " / ".join(ended.stderr.split("\n")).strip(" /")
            raise UserError(f"{' '.join(command)}: {said or f'exit status {ended.returncode}'}")
        return ended.stdout

    def _command(self, daemon: str) -> list[str]:
        """The command that starts a daemon in the foreground, with all its files inside the folder."""
        folder = self.folder
        if daemon == "munged":
            files = {"key-file": "munge.key", "socket": "munge.socket", "seed-file": "munge.seed"}
            files["pid-file"] = "pid/munged"
            return ["munged", "--foreground", *(f"--{option}={folder}/{name}" for option, name in files.items())]
        if daemon == "mariadbd":
            command = ["mariadbd", "--no-defaults", "--user=root", f"--datadir={folder}/mysql"]
            command += ["--bind-address=127.0.0.1", f"--port={self.ports[daemon]}", f"--socket={folder}/mysql.socket"]
            return [*command, f"--init-file={folder}/users.sql", "--skip-name-resolve"]
        if daemon not in self.nodes:
            return [daemon, "-D"]
        slurmd = ["slurmd", "-D", "-N", daemon]
        if not _may_name_hosts():
            return slurmd
        named = f'hostname {daemon} && mount --bind "$0" /etc/hosts && exec "$@"'
        return ["unshare", "--uts", "--mount", "sh", "-c", named, f"{folder}/hosts", *slurmd]

    def _answers(self, daemon: str) -> bool:
        address: tuple[str, int] | str = str(self.folder / "munge.socket")
        family = socket.AF_UNIX
        if daemon != "munged":
            address, family = ("127.0.0.1", self.ports[daemon]), socket.AF_INET
        with socket.socket(family) as connection:
            return connection.connect_ex(address) == 0

    def _all_idle(self) -> bool:
        return set(self.node_states().values()) == {"idle"}

    def _wait_for(
        self, what: str, ready: Callable[[], bool], log: str, process: subprocess.Popen | None = None
    ) -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        while not ready():
            ended = process is not None and process.poll() is not None
            if ended or time.monotonic() > deadline:
                path = self.folder / "log" / log
                tail = " / ".join(path.read_text(errors="replace").split("\n")[-6:]).strip(" /")
                problem = "ended at its start" if ended else f"not ready after {SECONDS_TO_START} s"
                raise UserError(f"{what}: {problem}; the end of {path}: {tail}")
            time.sleep(0.1)

    def _create_database(self) -> None:
        command = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={self.folder}/mysql"]
        self.ask(*command, "--auth-root-authentication-method=socket", "--skip-test-db")

    def _add_accounts(self) -> None:
        """Add the cluster itself, and an account beside `root`, which there always is."""
        if CLUSTER not in self.ask("sacctmgr", "--noheader", "show", "cluster", "format=cluster").split():
            self.ask("sacctmgr", "-i", "add", "cluster", CLUSTER)
            self.ask("sacctmgr", "-i", "add", "account", ACCOUNT)
            self.ask("sacctmgr", "-i", "add", "user", "root", f"account={ACCOUNT}")

    def _kill_jobs(self, nodes: list[str]) -> None:
        """Kill the slurmstepd of these nodes and the processes of their jobs, until none is left.

        A slurmstepd is known by its working folder, which is that of its slurmd, as it clears its environment. The
        processes of a job are known by their environment.
        """
        places = {str(self._place(node)) for node in nodes}
        names = {f"SLURMD_NODENAME={node}" for node in nodes}
        while True:
            found = []
            for pid in _processes():
                environment = set(_read(pid, "environ").split("\0"))
                of_a_job = f"SLURM_CONF={self.conf}" in environment and environment & names
                if of_a_job or (_read(pid, "cmdline").startswith("slurmstepd") and _working_folder(pid) in places):
                    found.append(pid)
            found = [pid for pid in found if pid not in _ancestors()]
            if not found:
                return
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def _place(self, daemon: str) -> Path:
        return self.folder / "spool" / daemon

    def _pid_file(self, daemon: str) -> Path:
        return self.folder / "pid" / daemon

    def _write(self, settings: Settings) -> None:
        """Write the folder: the configuration, a munge key, and links in the place of the GPUs' device files."""
        if self.exists:
            shutil.rmtree(self.folder)
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder}: not empty, and not a cluster's folder; name another --folder")
        if len(str(self.folder)) > LONGEST_FOLDER:
            raise UserError(f"{self.folder}: too long a path for sockets; name a shorter --folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # munge's clients reach its socket through it
        nodes = [f"n{number}" for number in range(1, settings.nodes + 1)]
        daemons = [CONTROLLER, "slurmdbd", "mariadbd", *nodes]
        ports = dict(zip(daemons, _free_ports(len(daemons)), strict=True))
        (self.folder / SETTINGS).write_text(json.dumps({"settings": asdict(settings), "ports": ports}) + "\n")
        for name in ("state", "spool", "pid", "log", "dev"):
            (self.folder / name).mkdir()
        for number in range(settings.gpus):
            (self.folder / "dev" / f"gpu{number}").symlink_to("/dev/null")  # a character device, or Slurm takes none
        per_node = f"CPUs={settings.cpus} RealMemory={settings.memory_mb} Gres=gpu:{settings.gpus}"
        values = {f"{daemon}_port": port for daemon, port in ports.items()} | {
            "folder": self.folder,
            "host": socket.gethostname().partition(".")[0],
            "max_array_size": settings.max_array_size,
            "requeue_seconds": settings.requeue_seconds,
            "accounting": f"Include {self.folder}/accounting.conf" if settings.accounting else "# no accounting",
            "node_names": ",".join(nodes),
            "node_lines": "\n".join(
                f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[node]} {per_node}"
                for node in nodes
            ),
            "last_gpu": settings.gpus - 1,
            "password": secrets.token_hex(16),
        }
        hosts = f"127.0.0.1 {' '.join(nodes)}\n"
        (self.folder / "hosts").write_text(Path("/etc/hosts").read_text() + hosts)
        texts = {name: (Path(__file__).parent / name).read_text() for name in TEMPLATES}
        for name, text in {**texts, "munge.key": secrets.token_hex(64)}.items():
            (self.folder / name).touch(0o644 if name in FOR_ALL else 0o600)
            (self.folder / name).write_text(string.Template(text).substitute(values))


def _require_root_and_packages(settings: Settings) -> None:
    if os.geteuid() != 0:
        raise UserError("Slurm's daemons need root here (they start jobs as their users); run this as root")
    wanted = [program for program in PACKAGES if settings.accounting or program not in FOR_ACCOUNTING]
    missing = sorted({PACKAGES[program] for program in wanted if not shutil.which(program, path=PATH)})
    if missing:
        raise UserError(f"not installed: {', '.join(missing)}; on Debian: apt install {' '.join(missing)}")


def _may_name_hosts() -> bool:
    """Whether processes can have a host name of their own here, as they have on the nodes of a cluster."""
    return subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, check=False).returncode == 0


def _free_ports(count: int) -> list[int]:
    """Free ports below those that the kernel gives to outgoing connections, so that nobody takes a stopped daemon's."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) and len(found) < count:
                found.append(port)
    return found


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _read(pid: int, name: str) -> str:
    """A process's `cmdline` or `environ`, a NUL after each word; empty if it is gone, a zombie, or not ours."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def _working_folder(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def _ancestors() -> set[int]:
    """This process and its ancestors."""
    found, pid = set(), os.getpid()
    while pid > 0:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found
