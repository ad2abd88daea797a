"""From a config to a trial: every number that defines it, its identity, and what is known before training.

A trial's id is a hash of resolved values, so two ways of saying the same run give the same id, and the same
trial wanted by two sweeps is trained once. How it is executed (`RunOptions`) is never part of it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from models.config import ModelConfig
from models.count import FlopsPerToken, flops_per_token, params_by_group, params_non_embedding, params_total
from sweep.common.errors import UserError
from sweep.common.files import read_json, write_json
from sweep.common.units import parse_count, parse_quantity, scientific, short
from sweep.config.compose import Config, OptimSection, ScheduleSection
from sweep.config.model import resolve as resolve_model
from sweep.data.placeholder import Unprepared
from sweep.data.tokens import Tokens, count_sequences, more_than_available
from sweep.plan.schedule import Schedule
from sweep.runs.rundir import SCHEMA_VERSION


@dataclass
class DataIdentity:
    """Which token shards, and how many of their sequences may be seen."""

    fingerprint: str
    unique_sequences: int


@dataclass
class Optim:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) at a peak learning rate."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_norm: float


@dataclass
class Evaluation:
    """What is measured while training. The steps do not depend on the budget."""

    sequences: int
    first_step: int
    points_per_doubling: int
    log_every_steps: int
    sample_tokens: int


@dataclass
class TrialConfig:
    """Everything that defines a trial, resolved. Its canonical JSON is its identity."""

    model: ModelConfig
    data: DataIdentity
    optim: Optim
    schedule: Schedule
    eval: Evaluation
    batch_sequences: int
    steps: int
    precision: str
    seed: int

    @property
    def batch_tokens(self) -> int:
        return self.batch_sequences * self.model.seq_len

    @property
    def branch_step(self) -> int:
        """The step at which this trial leaves its family's trunk."""
        return self.schedule.branch_step(self.steps)


@dataclass
class Trial:
    """A TrialConfig, its names, and what can be said before training.

    `written` is the config that it was resolved from, so that its data can be prepared again and a variant of it
    trained; it is not part of its identity.
    """

    config: TrialConfig
    written: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def trial_id(self) -> str:
        shape = f"{self.config.model.depth}x{self.config.model.width}"
        stem = f"{short(self.params_non_embedding)}-{shape}-{short(self.tokens)}tok-s{self.config.seed}"
        return f"{stem}-{_digest(asdict(self.config))}"

    @cached_property
    def family_id(self) -> str:
        """The same for all budgets: the trial minus its steps."""
        identity = asdict(self.config)
        del identity["steps"]
        shape = f"{self.config.model.depth}x{self.config.model.width}"
        return f"{short(self.params_non_embedding)}-{shape}-s{self.config.seed}-{_digest(identity)}"

    @cached_property
    def params_non_embedding(self) -> int:
        return params_non_embedding(self.config.model)

    @cached_property
    def params_total(self) -> int:
        return params_total(self.config.model)

    @cached_property
    def params_by_group(self) -> dict[str, int]:
        return params_by_group(self.config.model)

    @cached_property
    def flops_per_token(self) -> FlopsPerToken:
        return flops_per_token(self.config.model)

    @property
    def tokens(self) -> int:
        return self.config.steps * self.config.batch_tokens

    @property
    def flops(self) -> float:
        """Exact training FLOPs (forward and backward, attention and logits included)."""
        return float(self.flops_per_token.exact * self.tokens)

    @property
    def tokens_per_param(self) -> float:
        return self.tokens / self.params_non_embedding

    @property
    def unique_tokens(self) -> int:
        return self.config.data.unique_sequences * self.config.model.seq_len

    @property
    def epochs(self) -> float:
        return self.tokens / self.unique_tokens

    @property
    def lr_multiplier(self) -> float:
        """The learning rate over what the rule gives for this width, whether it was written as one or the other."""
        ratio = self.config.optim.lr / _lr_by_rule(self.written["optim"]["lr_base"], self.config.model.width)
        return float(f"{ratio:.4g}")  # the learning rate itself is rounded

    def facts(self) -> dict[str, Any]:
        """What tables show and `where:` conditions may name."""
        model = self.config.model
        return {
            "trial_id": self.trial_id,
            "family_id": self.family_id,
            "params_non_embedding": self.params_non_embedding,
            "params_total": self.params_total,
            "tokens": self.tokens,
            "flops": self.flops,
            "flops_per_token": float(self.flops_per_token.exact),
            "flops_6n": float(self.flops_per_token.six_n * self.tokens),
            "flops_6n_non_embedding": float(self.flops_per_token.six_n_non_embedding * self.tokens),
            "tokens_per_param": self.tokens_per_param,
            "unique_tokens": self.unique_tokens,
            "epochs": self.epochs,
            "lr": self.config.optim.lr,
            "lr_multiplier": self.lr_multiplier,
            "depth": model.depth,
            "width": model.width,
            "heads": model.heads,
            "seq_len": model.seq_len,
            "vocab_size": model.vocab_size,
            "batch_tokens": self.config.batch_tokens,
            "steps": self.config.steps,
            "schedule": self.config.schedule.name,
            "precision": self.config.precision,
            "seed": self.config.seed,
            "data_fingerprint": self.config.data.fingerprint,
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "trial_id": self.trial_id,
            "family_id": self.family_id,
            "config": asdict(self.config),
            "written": self.written,
            "facts": self.facts(),
        }

    def keep(self, path: Path) -> None:
        """Put this trial's `trial.json` there, or check that the one that is there is its own."""
        if not path.exists():
            write_json(path, self.to_json())
        elif Trial.read(path).trial_id != self.trial_id:
            raise UserError(f"{path}: holds another trial than its folder's name says; restore or remove it")

    @classmethod
    def read(cls, path: Path) -> "Trial":
        return cls.from_json(read_json(path), path)

    @classmethod
    def from_json(cls, value: dict[str, Any], where: Path | str) -> "Trial":
        """The trial in a `trial.json` or plan line, its id checked against its content."""
        version = value.get("schema_version") if isinstance(value, dict) else None
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{where}: schema version {version}, this code reads {SCHEMA_VERSION}; "
                "use the code that wrote it, or train the trial again"
            )
        try:
            raw = value["config"]
            config = TrialConfig(
                model=ModelConfig(**raw["model"]),
                data=DataIdentity(**raw["data"]),
                optim=Optim(**raw["optim"]),
                schedule=Schedule(**raw["schedule"]),
                eval=Evaluation(**raw["eval"]),
                **{key: raw[key] for key in ("batch_sequences", "steps", "precision", "seed")},
            )
            trial = cls(config, written=value["written"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: not a trial of this version ({error}); restore or remove it") from error
        if trial.trial_id != value.get("trial_id"):
            raise UserError(
                f"{where}: its content gives the id {trial.trial_id}, it says {value.get('trial_id')}; it was edited "
                "by hand: use overrides to train a variant"
            )
        return trial


def resolve(config: Config, tokens: Tokens | Unprepared, device: str) -> Trial:
    """The trial that `config` says, over prepared data, for `device` ("cpu" or "cuda"; it decides `precision: auto`).

    Raises UserError where a value is impossible. Whether the numbers fit together is asked of `check`, so that a grid's
    conditions can exclude a point first.
    """
    section = config.model
    if section.params is not None:
        section = replace(section, params=parse_count("model.params", section.params))
    try:
        model = resolve_model(section, vocab_size=tokens.vocab_size, seq_len=config.seq_len)
    except ValueError as error:
        raise UserError(str(error)) from error
    trial_config = TrialConfig(
        model=model,
        data=DataIdentity(tokens.fingerprint, _unique_sequences(config, tokens)),
        optim=_optim(config.optim, model.width),
        schedule=_schedule(config.schedule, model, batch_tokens=config.batch.sequences * config.seq_len),
        eval=Evaluation(**asdict(config.eval)),
        batch_sequences=config.batch.sequences,
        steps=_steps(config, model),
        precision=_precision(config.precision, device),
        seed=config.seed,
    )
    return Trial(trial_config, written=_written(config))


def check(trial: Trial, tokens: Tokens | Unprepared) -> None:
    """Refuse a trial whose numbers do not fit together."""
    config = trial.config
    per_step = config.batch_tokens
    if config.steps < 1:
        given = ", ".join(
            f"budget.{key}={value}" for key, value in trial.written["budget"].items() if value is not None
        )
        raise UserError(f"{given}: under half a step of {per_step} tokens; give more, or a smaller batch")
    stable = config.branch_step if config.schedule.name == "wsd" else config.steps
    if config.schedule.warmup_steps > stable:
        raise UserError(
            f"schedule.warmup_tokens={config.schedule.warmup_steps * per_step}: the warm-up does not fit the "
            f"{stable * per_step} tokens before the decay; give a larger budget or less warm-up"
        )
    available = count_sequences(tokens.validation, config.model.seq_len)
    if config.eval.sequences > available:
        raise UserError(
            f"eval.sequences={config.eval.sequences}: the validation split holds {available} sequences of "
            f"{config.model.seq_len} tokens; ask for fewer, or raise data.validation_fraction"
        )


def _steps(config: Config, model: ModelConfig) -> int:
    given = {key: value for key, value in asdict(config.budget).items() if value is not None}
    if len(given) != 1:
        said = ", ".join(f"budget.{key}={value}" for key, value in given.items()) or "none is given"
        raise UserError(f"budget: give exactly one of tokens, flops, tokens_per_param ({said})")
    ((key, value),) = given.items()
    amount = parse_quantity(f"budget.{key}", value)
    per_step = config.batch.sequences * config.seq_len
    tokens = {
        "tokens": amount,
        "flops": amount / flops_per_token(model).exact,
        "tokens_per_param": amount * params_non_embedding(model),
    }[key]
    return round(tokens / per_step)


def _schedule(section: ScheduleSection, model: ModelConfig, batch_tokens: int) -> Schedule:
    if section.warmup_tokens is None:
        warmup_tokens = section.warmup_tokens_per_param * params_non_embedding(model)
    elif section.warmup_tokens == 0:
        warmup_tokens = 0.0
    else:
        warmup_tokens = parse_quantity("schedule.warmup_tokens", section.warmup_tokens)
    return Schedule(
        name=section.name,
        warmup_steps=round(warmup_tokens / batch_tokens),
        decay_fraction=1.0 if section.name == "cosine" else section.decay_fraction,  # cosine decays all along
        final_lr_fraction=section.final_lr_fraction,
    )


def _lr_by_rule(lr_base: float, width: int) -> float:
    return lr_base * (64 / width) ** 0.5


def _optim(section: OptimSection, width: int) -> Optim:
    if section.lr is not None and section.lr_multiplier != 1:
        raise UserError(
            f"optim.lr={section.lr:g}: is the learning rate, and optim.lr_multiplier={section.lr_multiplier:g} asks "
            "for a multiple of the rule's; give only one (optim.lr=null, or optim.lr_multiplier=1)"
        )
    lr = section.lr if section.lr is not None else _lr_by_rule(section.lr_base, width) * section.lr_multiplier
    # Six digits, so that the last bit of a platform's square root cannot change a trial's identity.
    return Optim(
        lr=float(f"{lr:.6g}"),
        beta1=section.beta1,
        beta2=section.beta2,
        eps=section.eps,
        weight_decay=section.weight_decay,
        clip_norm=section.clip_norm,
    )


def _unique_sequences(config: Config, tokens: Tokens | Unprepared) -> int:
    available = count_sequences(tokens.train, config.seq_len)
    if available < 1:
        raise UserError(
            f"seq_len={config.seq_len}: the training split holds {len(tokens.train)} tokens, under one sequence; "
            "give a smaller seq_len, or more data"
        )
    if config.data.unique_tokens is None:
        return available
    wanted = parse_quantity("data.unique_tokens", config.data.unique_tokens)
    sequences = round(wanted / config.seq_len)
    if sequences > available:
        raise more_than_available(round(wanted), tokens, config.seq_len)
    if sequences < 1:
        raise UserError(
            f"data.unique_tokens={config.data.unique_tokens}: under one sequence of {config.seq_len} tokens"
        )
    return sequences


def _precision(asked: str, device: str) -> str:
    if asked != "auto":
        return asked
    return "bf16" if device == "cuda" else "fp32"


def _written(config: Config) -> dict[str, Any]:
    """The sections that define a trial, as they were written; the ladder stays in conf/model/<name>.yaml."""
    sections = ("model", "data", "optim", "schedule", "batch", "budget", "eval")
    config = replace(config, model=replace(config.model, ladder=[]))
    written = {name: asdict(getattr(config, name)) for name in sections}
    del written["model"]["ladder"]
    return {**written, "seed": config.seed, "seq_len": config.seq_len, "precision": config.precision}


def _digest(identity: dict[str, Any]) -> str:
    canonical = json.dumps({"schema_version": SCHEMA_VERSION, **identity}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def describe(trial: Trial) -> str:
    """One line for logs."""
    return (
        f"{trial.trial_id}: N={short(trial.params_non_embedding)} D={short(trial.tokens)} "
        f"C={scientific(trial.flops)} ({trial.config.steps} steps of {short(trial.config.batch_tokens)} tokens)"
    )
