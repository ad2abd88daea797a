"""From a grid to priced trials, before anything runs.

Each point of the grid (`sweep.plan.grid`) becomes a trial; `where:` conditions on derived quantities exclude points,
each with its reason. What is left gets an estimate, and a way of being trained.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweep.common import expressions
from sweep.common.devices import device_memory_bytes, device_model, planned_device, resolve_device
from sweep.common.errors import UserError
from sweep.common.units import format_bytes
from sweep.config.schema import ClusterSection, Config, PathsSection
from sweep.data.placeholder import PlaceholderTokens, stand_in
from sweep.data.prepare import DataConfig
from sweep.data.tokens import Tokens
from sweep.plan.grid import Point, grid
from sweep.plan.packing import Execution, check_micro_batch, executions, pays_to_calibrate, peers, training_bytes
from sweep.plan.resolve import check, resolve
from sweep.plan.speeds import ALONE, Estimate, Speeds
from sweep.plan.trial import Trial
from sweep.runs.record import Record
from sweep.runs.rundir import RunDir
from sweep.runs.settings import Excluded
from sweep.runs.state import has_record
from sweep.runs.sweepdir import SweepDir

ADAM_BYTES_PER_PARAM = 12  # fp32 weight and two moments, in a checkpoint
WEIGHT_BYTES_PER_PARAM = 4


@dataclass
class Plan:
    """The trials of a sweep in grid order, each once, with what each will cost."""

    name: str
    config: Config  # of the first point: options, cluster and paths are the same for all
    device: str
    device_bytes: float  # of one device
    trials: list[Trial]
    excluded: list[Excluded]
    repeated: int  # grid points that are a trial named before
    points: dict[str, list[str]]  # the overrides of each trial's point, by its id
    estimates: dict[str, Estimate]
    executions: list[Execution] = field(default_factory=list)  # how what is left of its families is trained, by shape
    only: frozenset[str] = frozenset()  # the families that this launch is about; all if none is named

    @property
    def runs(self) -> Path:
        return Path(self.config.paths.runs)

    @property
    def sweep(self) -> SweepDir:
        """The folder of its sweep, which need not be there yet."""
        return SweepDir(Path(self.config.paths.sweeps) / self.name)

    def families(self) -> list[list[Trial]]:
        """Trials that share a trunk, the longest family first, so that workers end together."""
        return sorted(by_family(self.trials), key=self.family_seconds, reverse=True)

    def restricted(self) -> "Plan":
        """The plan of the families that this launch is about."""
        return replace(self, trials=[trial for trial in self.trials if not self.only or trial.family_id in self.only])

    def family_seconds(self, trials: list[Trial]) -> float:
        """Device seconds of a family, its trunk counted once."""
        own, trunk = 0.0, 0.0
        for trial in trials:
            seconds = self.estimates[trial.trial_id].seconds
            shared = trial.config.branch_step / trial.config.steps
            own += seconds * (1 - shared)
            trunk = max(trunk, seconds * shared)
        return own + trunk

    def done(self) -> set[str]:
        """Trials that have a record, finished or diverged."""
        return {trial.trial_id for trial in self.trials if has_record(self.runs, trial.trial_id)}

    def left(self, done: set[str] | None = None) -> list[list[Trial]]:
        """The families that lack records (or are not `done`), with only the trials that do."""
        done = self.done() if done is None else done
        families = ([trial for trial in family if trial.trial_id not in done] for family in self.families())
        return [family for family in families if family]

    def peers(self) -> int:
        """How many processes share what is left: of a launch on this machine, or of one element on a cluster."""
        slurm, options = self.config.cluster.slurm, self.config.run
        if self.config.cluster.scheduler != "slurm":
            return peers(options, self.device)
        return slurm.gpus or max(1, slurm.cpus // options.threads)

    def worth_calibrating(self) -> list[Execution]:
        """Shapes that could be trained in several ways, of which so much is left that it pays to measure which."""
        left = {family[0].family_id: self.family_seconds(family) / self.peers() for family in self.left()}
        found = []
        for one in self.executions:
            seconds = sum(left.get(family[0].family_id, 0.0) for family in one.families)
            if pays_to_calibrate(one, seconds, self.config.run, self.device, self.device_bytes):
                found.append(one)
        return found

    def excluded_by_condition(self) -> dict[str, list[Excluded]]:
        groups: dict[str, list[Excluded]] = defaultdict(list)
        for excluded in self.excluded:
            groups[excluded.condition].append(excluded)
        return groups

    def memory_bytes(self, trial: Trial) -> int:
        """Of one device, while the trial trains."""
        return training_bytes(trial, self.config.run, self.device, self.device_bytes)

    def disk_bytes(self) -> int:
        """An upper bound on what the sweep leaves on disk and needs while it runs."""
        weights = sum(WEIGHT_BYTES_PER_PARAM * trial.params_total for trial in self.trials)
        trunks = sum(
            ADAM_BYTES_PER_PARAM * family[0].params_total * len({t.config.branch_step for t in family})
            for family in self.families()
        )
        return weights + trunks


def make_plan(
    overrides: list[str],
    prepared: Callable[[DataConfig, Path], Tokens | PlaceholderTokens],
    only: Collection[str] = (),
) -> Plan:
    """Plan the grid that `overrides` say; without a `sweep=` it is the one trial, or the axes given.

    `prepared` gives the tokens of a data section, or what stands for them. The device is what `run.device` asks for, or
    what the cluster's jobs get; where it is not of this machine, `cluster` says its name and memory.
    """
    points = list(grid(overrides))
    if not points:
        raise UserError("the grid has no points: an axis is empty")
    config, device = points[0].config, _device(points[0].config)
    device_name, device_bytes = _device_facts(config.cluster, device)
    trials: dict[str, Trial] = {}
    overrides_of: dict[str, list[str]] = {}
    excluded: list[Excluded] = []
    for point, found in zip(points, _trials(points, prepared, device, device_bytes), strict=True):
        if isinstance(found, Excluded):
            excluded.append(found)
        elif found.trial_id not in trials:
            trials[found.trial_id] = found
            overrides_of[found.trial_id] = point.overrides
    if not trials:
        conditions = ", ".join(dict.fromkeys(one.condition for one in excluded))
        raise UserError(f"no point of the grid is left: all {len(excluded)} are excluded by {conditions}")
    speeds = Speeds.read(Path(config.paths.runs))
    plan = Plan(
        name=config.sweep.name,
        config=config,
        device=device,
        device_bytes=device_bytes,
        trials=list(trials.values()),
        excluded=excluded,
        repeated=len(points) - len(trials) - len(excluded),
        points=overrides_of,
        estimates={
            trial_id: speeds.estimate(trial, config.run, device, device_name, config.cluster)
            for trial_id, trial in trials.items()
        },
        only=frozenset(only),
    )
    return _with_executions(plan, speeds, device_name)


def _trials(
    points: list[Point],
    prepared: Callable[[DataConfig, Path], Tokens | PlaceholderTokens],
    device: str,
    device_bytes: float,
) -> Iterator[Trial | Excluded]:
    """The trial of each point, or why it is left out; UserError for one that cannot be trained."""
    conditions = [expressions.parse(text) for text in points[0].config.sweep.where]
    tokens_of: dict[str, Tokens | PlaceholderTokens] = {}
    for point in points:
        key = f"{point.config.paths.tokens} {point.config.data}"
        try:
            if key not in tokens_of:
                resolve(point.config, stand_in(point.config.data), device)  # what needs no data is refused before it
                tokens_of[key] = prepared(point.config.data, Path(point.config.paths.tokens))
            found = _trial(point, tokens_of[key], conditions, device, device_bytes)
        except UserError as error:
            at = f" (at {' '.join(point.overrides)})" if point.overrides else ""
            raise UserError(f"{error}{at}") from error
        yield found


def _trial(
    point: Point,
    tokens: Tokens | PlaceholderTokens,
    conditions: list[expressions.Expression],
    device: str,
    device_bytes: float,
) -> Trial | Excluded:
    trial = resolve(point.config, tokens, device)
    if (broken := _broken(conditions, trial)) is not None:
        return Excluded(point.overrides, *broken)
    check(trial, tokens)
    check_micro_batch(point.config.run, trial.config.batch_sequences)
    needed = training_bytes(trial, point.config.run, device, device_bytes)
    if needed > device_bytes:
        raise UserError(
            f"{trial.trial_id} needs about {format_bytes(needed)} of device memory and there are "
            f"{device_bytes / 2**30:.1f} GiB; give a smaller run.micro_batch_sequences, a smaller model, or a larger "
            "device"
        )
    return trial


def _with_executions(plan: Plan, speeds: Speeds, device_name: str) -> Plan:
    """With how each shape is trained, and what that makes of the estimates: a trial's share of the device."""
    config, device = plan.config, plan.device
    chosen = executions(plan.left(), config.run, speeds, device, device_name, plan.peers())
    together = {
        trial.trial_id: speeds.estimate(trial, config.run, device, device_name, config.cluster, one.packing)
        for one in chosen
        for trial in itertools.chain.from_iterable(one.families)
        if one.packing != ALONE and speeds.calibrated(trial, config.run, device_name, one.packing) is not None
    }
    return replace(plan, executions=chosen, estimates=plan.estimates | together)


def scheduler(overrides: list[str]) -> str:
    """`cluster.scheduler` of the grid's first point."""
    return next((point.config.cluster.scheduler for point in grid(overrides)), "local")


def damaged(plan: Plan) -> dict[str, str]:
    """The trials whose record is there but cannot be read, so that it would pass for a finished one: what to do."""
    found = {}
    for trial_id in sorted(plan.done()):
        try:
            Record.read(RunDir.of_trial(plan.runs, trial_id).record)
        except UserError as error:
            found[trial_id] = str(error)
    return found


def refuse_damaged(plan: Plan) -> None:
    """UserError for the first of them."""
    said = list(damaged(plan).values())
    if said:
        raise UserError(said[0] + (f" (and {len(said) - 1} more records)" if said[1:] else ""))


def absolute_paths(plan: Plan) -> Plan:
    """The same plan with `paths.*` that hold wherever a job runs."""
    paths = {key: str(Path(folder).absolute()) for key, folder in vars(plan.config.paths).items()}
    return replace(plan, config=replace(plan.config, paths=PathsSection(**paths)))


def by_family(trials: list[Trial]) -> list[list[Trial]]:
    """Trials that share a trunk, families in the order of their first trial."""
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[trial.family_id].append(trial)
    return list(groups.values())


def _broken(conditions: list[expressions.Expression], trial: Trial) -> tuple[str, str] | None:
    """The first condition that does not hold, and the values of its names."""
    facts = {**vars(trial.facts), "N": trial.params_non_embedding, "D": trial.tokens, "C": trial.flops}
    for condition in conditions:
        if not expressions.evaluate(condition, facts):
            said = ", ".join(f"{name} = {facts[name]:.4g}" for name in condition.names if _is_number(facts[name]))
            return condition.text, said
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _device(config: Config) -> str:
    """ "cpu" or "cuda", where the trials will run."""
    slurm = config.cluster.slurm
    if config.cluster.scheduler != "slurm":
        return planned_device(config.run.device)
    if config.run.device == "cuda" and not slurm.gpus:
        raise UserError("run.device=cuda: cluster.slurm.gpus=0 asks for no GPU; give gpus, or run.device=cpu")
    return "cuda" if slurm.gpus and config.run.device != "cpu" else "cpu"


def _device_facts(cluster: ClusterSection, device: str) -> tuple[str, float]:
    """(name, bytes of memory) of the device, as the cluster says or as it is here."""
    name = cluster.device_name or _asked(device, device_model, "cluster.device_name")
    memory_gib = cluster.device_memory_gib or _asked(device, device_memory_bytes, "cluster.device_memory_gib") / 2**30
    return name, memory_gib * 2**30


def _asked(device: str, ask: Callable[[str], Any], key: str) -> Any:
    """A fact of this machine's device."""
    if device == "cuda" and resolve_device("auto") != "cuda":
        raise UserError(
            "run.device=cuda: torch sees no CUDA device here; take run.device=cpu, or, to plan for another machine, "
            f"cluster=h100 (or give {key})"
        )
    return ask(device)
