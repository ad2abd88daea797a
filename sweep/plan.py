"""From a grid to priced trials, before anything runs.

Axes are Hydra overrides in Hydra's sweep grammar, from `conf/sweep/*.yaml` and the command line. Hydra composes once
per combination of group choices (65 ms each); values are then laid over the composed sections, so that 1,000 trials
take seconds. `where:` conditions on derived quantities exclude points, each with its reason.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from models.count import memory_bytes
from sweep import files, where
from sweep.config import CONF, Config, PathsSection, compose_untyped, scalar, section, typed
from sweep.data.prepare import DataConfig
from sweep.data.tokens import Tokens
from sweep.environment import device_memory_bytes, device_model, planned_device, resolve_device
from sweep.errors import UserError
from sweep.estimate import ALONE, Estimate, Speeds
from sweep.execution import Execution, executions, micro_batch, pays_to_calibrate, peers
from sweep.quantity import size
from sweep.record import Record
from sweep.rundir import RunDir
from sweep.sweepdir import SweepDir, launch_command
from sweep.trial import Trial, check, resolve

NOT_OF_A_TRIAL = ("run", "cluster", "wandb", "paths", "sweep")  # the same for a whole sweep, so no axis
ADAM_BYTES_PER_PARAM = 12  # fp32 weight and two moments, in a checkpoint
WEIGHT_BYTES_PER_PARAM = 4


@dataclass
class Point:
    """One point of the grid: the overrides that make it, and its config."""

    overrides: list[str]
    config: Config


@dataclass
class Excluded:
    """A point that a condition leaves out, with the values that it was judged by."""

    overrides: list[str]
    condition: str
    facts: str


@dataclass
class Plan:
    """The trials of a sweep in grid order, each once, with what each will cost."""

    name: str
    config: Config  # of the first point: options, cluster and paths are the same for all
    device: str
    trials: list[Trial]
    excluded: list[Excluded]
    repeated: int  # grid points that are a trial named before
    estimates: dict[str, Estimate] = field(default_factory=dict)
    points: dict[str, list[str]] = field(default_factory=dict)  # the overrides of each trial's point, by its id
    executions: list[Execution] = field(default_factory=list)  # how what is left of its families is trained, by shape
    device_bytes: float = math.inf  # of one device
    only: set[str] = field(default_factory=set)  # the families that this launch is about; all if none is named

    @property
    def runs(self) -> Path:
        return Path(self.config.paths.runs)

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
        return {t.trial_id for t in self.trials if RunDir.of_trial(self.runs, t.trial_id).record.exists()}

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
        size = micro_batch(trial, self.config.run, self.device, self.device_bytes)
        return memory_bytes(trial.config.model, size, trial.config.precision)["total"]

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
    prepared: Callable[[DataConfig, Path], Tokens],
) -> Plan:
    """Plan the grid that `overrides` say; without a `sweep=` it is the one trial, or the axes given.

    `prepared` gives the tokens of a data section. The device is what `run.device` asks for, or what the cluster's jobs
    get; where it is not of this machine, `cluster` says its name and memory.
    """
    points = list(grid(overrides))
    if not points:
        raise UserError("the grid has no points: an axis is empty")
    first = points[0].config
    device = _device(first)
    conditions = [where.parse(text) for text in first.sweep.where]
    tokens_of: dict[str, Tokens] = {}
    plan = Plan(first.sweep.name, first, device, [], [], repeated=0)
    cluster = first.cluster
    device_name = cluster.device_name or _asked(device, device_model, "cluster.device_name")
    memory_gib = cluster.device_memory_gib or _asked(device, device_memory_bytes, "cluster.device_memory_gib") / 2**30
    plan.device_bytes = memory_gib * 2**30
    speeds = Speeds.read(plan.runs)
    seen: set[str] = set()
    for point in points:
        key = f"{point.config.paths.tokens} {point.config.data}"
        if key not in tokens_of:
            tokens_of[key] = prepared(point.config.data, Path(point.config.paths.tokens))
        try:
            trial = resolve(point.config, tokens_of[key], device)
            if (broken := _broken(conditions, trial)) is not None:
                plan.excluded.append(Excluded(point.overrides, *broken))
                continue
            check(trial, tokens_of[key])
            _check_micro_batch(plan, trial)
            _check_memory(plan, trial, memory_gib)
        except UserError as error:
            at = f" (at {' '.join(point.overrides)})" if point.overrides else ""
            raise UserError(f"{error}{at}") from error
        if trial.trial_id in seen:
            plan.repeated += 1
            continue
        seen.add(trial.trial_id)
        plan.trials.append(trial)
        plan.points[trial.trial_id] = point.overrides
        plan.estimates[trial.trial_id] = speeds.estimate(trial, first.run, device, device_name, cluster)
    if not plan.trials:
        conditions_said = ", ".join(plan.excluded_by_condition())
        raise UserError(f"no point of the grid is left: all {len(plan.excluded)} are excluded by {conditions_said}")
    _choose_executions(plan, speeds, device_name)
    return plan


def _choose_executions(plan: Plan, speeds: Speeds, device_name: str) -> None:
    """How each shape is trained, and what that makes of the estimates: a trial's share of the device."""
    config, device = plan.config, plan.device
    plan.executions = executions(plan.left(), config.run, speeds, device, device_name, plan.peers())
    for one in plan.executions:
        for trial in itertools.chain.from_iterable(one.families):
            if one.way != ALONE and speeds.calibrated(trial, config.run, device_name, one.way) is not None:
                estimate = speeds.estimate(trial, config.run, device, device_name, config.cluster, one.way)
                plan.estimates[trial.trial_id] = estimate


def save(plan: Plan, sweep: SweepDir, overrides: list[str], extend: bool = False) -> None:
    """Write the plan to its sweep's folder; what the folder holds already stays in it (see `additions`)."""
    there = planned_trials(sweep) if sweep.plan.exists() else []
    new = additions(plan, sweep, extend)
    trials = [*there, *(trial for family in plan.families() for trial in family if trial.trial_id in new)]
    files.write_json_lines(sweep.plan, (trial.to_json() for trial in trials))
    settings = {
        "name": sweep.name,
        "command": launch_command(overrides, extend),
        "overrides": overrides,
        "device": plan.device,
        "run": asdict(plan.config.run),
        "cluster": asdict(plan.config.cluster),
        "wandb": asdict(plan.config.wandb),
        "paths": asdict(plan.config.paths),
        "excluded": [asdict(excluded) for excluded in plan.excluded],
    }
    files.write_json(sweep.path / "sweep.json", settings)


def additions(plan: Plan, sweep: SweepDir, extend: bool) -> set[str]:
    """The trials that the sweep's folder does not hold yet. Adding to another grid is refused unless it is meant."""
    wanted = {trial.trial_id for trial in plan.trials}
    if not sweep.plan.exists():
        return wanted
    there = {line["trial_id"] for line in sweep.planned()}
    new = wanted - there
    if new and not extend:
        raise UserError(
            f"sweep.name={sweep.name}: {sweep.plan} holds another grid, of {len(there)} trials; {len(new)} of the "
            f"{len(wanted)} asked for are not in it; give another sweep.name=NAME, or add them: launch with --extend"
        )
    return new


def scheduler(overrides: list[str]) -> str:
    """`cluster.scheduler` of the grid's first point."""
    return next((point.config.cluster.scheduler for point in grid(overrides)), "local")


def refuse_damaged(plan: Plan) -> None:
    """UserError for a record that is there but cannot be read: it would pass for a finished trial."""
    damaged = []
    for trial_id in sorted(plan.done()):
        try:
            Record.read(RunDir.of_trial(plan.runs, trial_id).record)
        except UserError as error:
            damaged.append(str(error))
    if damaged:
        raise UserError(damaged[0] + (f" (and {len(damaged) - 1} more records)" if damaged[1:] else ""))


def absolute_paths(plan: Plan) -> Plan:
    """The same plan with `paths.*` that hold wherever a job runs."""
    paths = {key: str(Path(folder).absolute()) for key, folder in vars(plan.config.paths).items()}
    return replace(plan, config=replace(plan.config, paths=PathsSection(**paths)))


def planned_trials(sweep: SweepDir) -> list[Trial]:
    """The trials of a sweep's plan."""
    return [Trial.from_json(line, sweep.plan) for line in sweep.planned()]


def by_family(trials: list[Trial]) -> list[list[Trial]]:
    """Trials that share a trunk, families in the order of their first trial."""
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[trial.family_id].append(trial)
    return list(groups.values())


def grid(overrides: list[str]) -> Iterator[Point]:
    """Every point of the grid, in the order of its axes, the last one fastest."""
    fixed, axes = _split(overrides)
    axes = {**_sweep_axes(fixed, overrides), **axes}
    for key in axes:
        if key.partition(".")[0] in NOT_OF_A_TRIAL:
            raise UserError(f"{key}: is the same for all trials of a sweep, so no axis; give it one value")
    group_axes = {key: values for key, values in axes.items() if (CONF / key).is_dir()}
    value_axes = {key: values for key, values in axes.items() if key not in group_axes}
    composed = {
        choice: Composed(compose_untyped([*fixed, *choice]))
        for choice in itertools.product(*(_assignments(key, values) for key, values in group_axes.items()))
    }
    for combination in itertools.product(*(_assignments(key, values) for key, values in axes.items())):
        choice = tuple(text for key, text in zip(axes, combination, strict=True) if key in group_axes)
        values = [text for key, text in zip(axes, combination, strict=True) if key in value_axes]
        yield Point(list(combination), composed[choice].with_values(values))


class Composed:
    """One composition, and the configs that differ from it in values only; each section is checked once."""

    def __init__(self, raw: DictConfig):
        self.raw = raw
        self.base = typed(raw)
        self.sections: dict[tuple[str, ...], Any] = {}

    def with_values(self, assignments: list[str]) -> Config:
        by_section: dict[str, list[str]] = defaultdict(list)
        for assignment in assignments:
            by_section[assignment.partition("=")[0].partition(".")[0]].append(assignment)
        changed = {name: self._changed(name, texts) for name, texts in by_section.items()}
        return Config(**{**vars(self.base), **changed})

    def _changed(self, name: str, assignments: list[str]) -> Any:
        key = (name, *assignments)
        if key not in self.sections:
            self.sections[key] = lay_over(self.raw, name, assignments)
        return self.sections[key]


def lay_over(raw: DictConfig, name: str, assignments: list[str]) -> Any:
    if name not in raw:
        raise UserError(f"{assignments[0]}: unknown key; conf/train.yaml has {', '.join(map(str, raw))}")
    changed = OmegaConf.create({name: raw[name]})
    for assignment in assignments:
        parsed = _parse(assignment)
        try:
            OmegaConf.update(changed, parsed.key_or_group, parsed.value())
        except OmegaConfBaseException as error:
            raise UserError(f"{assignment}: {str(error).splitlines()[0]}") from error
    value = changed[name]
    return section(name, value) if isinstance(value, DictConfig) else scalar(name, value)


def _split(overrides: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides that hold for every point, and axes with their values as text."""
    fixed, axes = [], {}
    for text in overrides:
        override = _parse(text)
        if override.is_sweep_override():
            axes[override.key_or_group] = _values(override)
        else:
            fixed.append(text)
    return fixed, axes


def _sweep_axes(fixed: list[str], overrides: list[str]) -> dict[str, list[str]]:
    """The axes of `sweep=…`, less those that the command line says itself."""
    raw = compose_untyped(fixed)
    said = {_parse(text).key_or_group for text in overrides}
    axes = {}
    for key, values in section("sweep", raw["sweep"]).axes.items():
        if key not in said:
            text = ",".join(map(str, values)) if isinstance(values, list) else str(values)
            override = _parse(f"{key}={text}")
            axes[key] = _values(override) if override.is_sweep_override() else [text]
    return axes


def _values(override: Override) -> list[str]:
    try:
        return [_short_float(text) for text in override.sweep_string_iterator()]
    except HydraException as error:
        raise UserError(f"{override.input_line}: not a list of values; write key=a,b,c or key=range(…)") from error


def _short_float(text: str) -> str:
    """Hydra writes 3e11 as 300000000000.0; as people write it, where that is the same number."""
    try:
        short = f"{float(text):g}".replace("e+", "e")
    except ValueError:
        return text
    return short if "." in text and float(short) == float(text) else text


def _assignments(key: str, values: list[str]) -> list[str]:
    return [f"{key}={value}" for value in values]


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise UserError(f"{text}: not an override; write key=value, or key=a,b,c for an axis") from error


def _broken(conditions: list[where.Expression], trial: Trial) -> tuple[str, str] | None:
    """The first condition that does not hold, and the values of its names."""
    facts = trial.facts()
    facts |= {"N": facts["params_non_embedding"], "D": facts["tokens"], "C": facts["flops"]}
    for condition in conditions:
        if not where.evaluate(condition, facts):
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


def _asked(device: str, ask: Callable[[str], Any], key: str) -> Any:
    """A fact of this machine's device."""
    if device == "cuda" and resolve_device("auto") != "cuda":
        raise UserError(
            "run.device=cuda: torch sees no CUDA device here; take run.device=cpu, or, to plan for another machine, "
            f"cluster=h100 (or give {key})"
        )
    return ask(device)


def _check_micro_batch(plan: Plan, trial: Trial) -> None:
    micro_batch, batch = plan.config.run.micro_batch_sequences, trial.config.batch_sequences
    if micro_batch and batch % micro_batch:
        raise UserError(f"run.micro_batch_sequences={micro_batch}: must divide batch.sequences={batch}")


def _check_memory(plan: Plan, trial: Trial, available_gib: float) -> None:
    needed = plan.memory_bytes(trial)
    if needed > available_gib * 2**30:
        raise UserError(
            f"{trial.trial_id} needs about {size(needed)} of device memory and there are {available_gib:.1f} GiB; "
            "give a smaller run.micro_batch_sequences, a smaller model, or a larger device"
        )
