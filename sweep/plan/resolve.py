"""From a config to a trial: sizes, rules and budgets as people write them become the numbers that define it."""

from dataclasses import asdict, replace

from models.config import ModelConfig
from models.count import flops_per_token, params_non_embedding
from sweep.common.errors import UserError
from sweep.common.units import parse_count, parse_quantity
from sweep.config.model import resolve as resolve_model
from sweep.config.schema import Config, OptimSection, ScheduleSection
from sweep.data.placeholder import PlaceholderTokens
from sweep.data.tokens import Tokens, count_sequences, more_than_available
from sweep.plan.schedule import Schedule
from sweep.plan.trial import DataIdentity, Evaluation, Optim, Trial, TrialConfig, lr_by_rule
from sweep.plan.written import Written


def resolve(config: Config, tokens: Tokens | PlaceholderTokens, device: str) -> Trial:
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
    return Trial(trial_config, Written.of(config))


def check(trial: Trial, tokens: Tokens | PlaceholderTokens) -> None:
    """Refuse a trial whose numbers do not fit together."""
    config = trial.config
    per_step = config.batch_tokens
    if config.steps < 1:
        given = ", ".join(
            f"budget.{key}={value}" for key, value in vars(trial.written.budget).items() if value is not None
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


def _optim(section: OptimSection, width: int) -> Optim:
    if section.lr is not None and section.lr_multiplier != 1:
        raise UserError(
            f"optim.lr={section.lr:g}: is the learning rate, and optim.lr_multiplier={section.lr_multiplier:g} asks "
            "for a multiple of the rule's; give only one (optim.lr=null, or optim.lr_multiplier=1)"
        )
    lr = section.lr if section.lr is not None else lr_by_rule(section.lr_base, width) * section.lr_multiplier
    # Six digits, so that the last bit of a platform's square root cannot change a trial's identity.
    return Optim(
        lr=float(f"{lr:.6g}"),
        beta1=section.beta1,
        beta2=section.beta2,
        eps=section.eps,
        weight_decay=section.weight_decay,
        clip_norm=section.clip_norm,
    )


def _unique_sequences(config: Config, tokens: Tokens | PlaceholderTokens) -> int:
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
