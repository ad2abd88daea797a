"""A trial: every number that defines it, its identity, and what is known before training.

A trial's id is a hash of resolved values, so two ways of saying the same run give the same id, and the same
trial wanted by two sweeps is trained once. How it is executed (`RunOptions`) is never part of it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from models.config import ModelConfig
from models.count import FlopsPerToken, flops_per_token, params_by_group, params_non_embedding, params_total
from sweep.common import artefacts
from sweep.common.errors import UserError
from sweep.common.files import write_json
from sweep.common.units import scientific, short
from sweep.plan.schedule import Schedule
from sweep.plan.written import Written
from sweep.runs.planned import Facts
from sweep.runs.rundir import SCHEMA_VERSION


@dataclass(frozen=True)
class DataIdentity:
    """Which token shards, and how many of their sequences may be seen."""

    fingerprint: str
    unique_sequences: int


@dataclass(frozen=True)
class Optim:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) at a peak learning rate."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_norm: float


@dataclass(frozen=True)
class Evaluation:
    """What is measured while training. The steps do not depend on the budget."""

    sequences: int
    first_step: int
    points_per_doubling: int
    log_every_steps: int
    sample_tokens: int


@dataclass(frozen=True)
class TrialConfig:
    """Everything that defines a trial, resolved. Its canonical JSON is its identity, so files may hold no other key."""

    __pydantic_config__ = ConfigDict(extra="forbid")

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


@dataclass(frozen=True)
class TrialFile:
    """What is read of `trial.json` and of a plan's line. Their facts follow from the config."""

    trial_id: str
    config: TrialConfig
    written: Written


@dataclass(frozen=True)
class Trial:
    """A TrialConfig, its names, and what can be said before training.

    `written` is the config that it was resolved from. It is not part of the trial's identity.
    """

    config: TrialConfig
    written: Written

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
        ratio = self.config.optim.lr / lr_by_rule(self.written.optim.lr_base, self.config.model.width)
        return float(f"{ratio:.4g}")  # the learning rate itself is rounded

    @cached_property
    def facts(self) -> Facts:
        """What tables show and `where:` conditions may name."""
        model = self.config.model
        return Facts(
            trial_id=self.trial_id,
            family_id=self.family_id,
            params_non_embedding=self.params_non_embedding,
            params_total=self.params_total,
            tokens=self.tokens,
            flops=self.flops,
            flops_per_token=float(self.flops_per_token.exact),
            flops_6n=float(self.flops_per_token.six_n * self.tokens),
            flops_6n_non_embedding=float(self.flops_per_token.six_n_non_embedding * self.tokens),
            tokens_per_param=self.tokens_per_param,
            unique_tokens=self.unique_tokens,
            epochs=self.epochs,
            lr=self.config.optim.lr,
            lr_multiplier=self.lr_multiplier,
            depth=model.depth,
            width=model.width,
            heads=model.heads,
            seq_len=model.seq_len,
            vocab_size=model.vocab_size,
            batch_tokens=self.config.batch_tokens,
            steps=self.config.steps,
            schedule=self.config.schedule.name,
            precision=self.config.precision,
            seed=self.config.seed,
            data_fingerprint=self.config.data.fingerprint,
        )

    def to_json(self) -> dict[str, Any]:
        """The content of `trial.json`, and of a line of `plan.jsonl`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "trial_id": self.trial_id,
            "family_id": self.family_id,
            "config": asdict(self.config),
            "written": self.written.as_config(),
            "facts": asdict(self.facts),
        }

    def keep(self, path: Path) -> None:
        """Write this trial's `trial.json`, or check that the file that is there is its own."""
        if not path.exists():
            write_json(path, self.to_json())
        elif Trial.read(path).trial_id != self.trial_id:
            raise UserError(f"{path}: holds another trial than its folder's name says; restore or remove it")

    @classmethod
    def read(cls, path: Path) -> "Trial":
        """The trial in a `trial.json`. UserError where there is none, and as `decode` says."""
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file") from error
        return cls.decode(content, path)

    @classmethod
    def decode(cls, content: bytes | str, where: Path | str, mend: str = "restore or remove it") -> "Trial":
        """The trial in JSON text. UserError where the text is damaged, of another schema version, or edited so that the
        id no longer follows from the content."""
        artefacts.check_version(
            content, where, SCHEMA_VERSION, "use the code that wrote it, or train the trial again", mend
        )
        said = artefacts.decode(TrialFile, content, where, mend)
        trial = cls(said.config, said.written)
        if trial.trial_id != said.trial_id:
            raise UserError(
                f"{where}: its content gives the id {trial.trial_id}, it says {said.trial_id}; it was edited "
                "by hand: use overrides to train a variant"
            )
        return trial


def lr_by_rule(lr_base: float, width: int) -> float:
    """The peak learning rate at a width: `lr_base` is that of width 64."""
    return lr_base * (64 / width) ** 0.5


def _digest(identity: dict[str, object]) -> str:
    canonical = json.dumps({"schema_version": SCHEMA_VERSION, **identity}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def describe(trial: Trial) -> str:
    """One line for logs."""
    return (
        f"{trial.trial_id}: N={short(trial.params_non_embedding)} D={short(trial.tokens)} "
        f"C={scientific(trial.flops)} ({trial.config.steps} steps of {short(trial.config.batch_tokens)} tokens)"
    )
