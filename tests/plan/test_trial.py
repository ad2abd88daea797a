"""Identity: the same run has one id however it is said, and nothing that changes a result leaves the id as it was."""

import json
from dataclasses import asdict

import pytest

from sweep.common.errors import UserError
from sweep.config.compose import compose_untyped
from sweep.data.prepare import find
from sweep.data.tokens import Tokens
from sweep.plan.grid import Composed
from sweep.plan.resolve import check, resolve
from sweep.plan.trial import Trial
from tests.helpers import tiny


@pytest.fixture(scope="module")
def tokens(overrides, prepared):
    config = Composed(compose_untyped(overrides)).base
    return find(config.data, prepared[1])


@pytest.fixture(scope="module")
def trial(overrides, tokens):
    """The trial that overrides say, over the small text, on the CPU."""
    composed = Composed(compose_untyped(overrides))

    def make(*said: str, device="cpu") -> Trial:
        said = said if any(text.startswith("budget.") for text in said) else (tiny.steps(40), *said)
        return resolve(composed.with_values(list(said)), tokens, device)

    return make


def test_three_ways_of_saying_a_budget_are_one_trial(trial):
    by_tokens = trial("budget.tokens=5120")
    assert by_tokens.config.steps == 40
    assert by_tokens.params_non_embedding == 3088
    for same in (
        "budget.tokens=5.12k",
        f"budget.flops={by_tokens.flops:.6g}",
        f"budget.flops={int(by_tokens.flops)}",
        f"budget.tokens_per_param={5120 / 3088}",
        "budget.tokens=5150",  # to the nearest step
    ):
        assert trial(same).trial_id == by_tokens.trial_id
    assert trial("budget.tokens=5248").trial_id != by_tokens.trial_id


def test_a_rule_and_its_result_are_one_trial(trial):
    """Defaults that are spelled out, a learning rate by the rule or as a number, warm-up by parameters or in tokens."""
    plain = trial()
    for same in (
        ["optim.lr=0.006"],  # 3e-3 · (64 / 16)^½
        ["optim.lr_base=1.5e-3", "optim.lr_multiplier=2"],
        ["model.kv_heads=1", "model.head_dim=16", "model.mlp_width=64"],
        [f"schedule.warmup_tokens_per_param={512 / 3088}", "schedule.warmup_tokens=null"],
        ["precision=fp32"],
        [f"data.unique_tokens={plain.unique_tokens}"],
        ["cluster.name=x", "cluster.mfu=0.1", "paths.runs=elsewhere", "sweep.name=other"],
    ):
        assert trial(*same).trial_id == plain.trial_id, same
    assert trial("optim.lr=0.006").facts.lr_multiplier == plain.facts.lr_multiplier == 1


def test_a_learning_rate_is_known_as_a_multiple_of_the_rules(trial):
    assert trial("optim.lr=0.003").facts.lr_multiplier == 0.5
    thrice = trial("optim.lr_multiplier=3", "model.width=24", "model.heads=1")  # of a rate that is rounded
    assert (thrice.config.optim.lr, thrice.facts.lr_multiplier) == (0.0146969, 3)


def test_a_learning_rate_and_a_multiple_of_the_rules_are_not_taken_together(trial):
    with pytest.raises(UserError, match=r"optim\.lr=0\.001: .* optim\.lr_multiplier=0\.5 .*; give only one"):
        trial("optim.lr=1e-3", "optim.lr_multiplier=0.5")


def test_how_a_trial_is_executed_is_not_what_it_is(trial):
    plain = trial()
    for how in (
        "run.threads=2",
        "run.micro_batch_sequences=2",
        "run.backend=reference",
        "run.compile=true",
        "run.checkpoint_seconds=1",
        "run.deterministic=false",
        "run.keep_weights=false",
        "run.workers=3",
        "run.device=auto",
    ):
        assert trial(how).trial_id == plain.trial_id, how


@pytest.mark.parametrize(
    "what",
    [
        "seed=1",
        "optim.lr_multiplier=2",
        "optim.beta2=0.99",
        "optim.weight_decay=0",
        "optim.clip_norm=2",
        "schedule.decay_fraction=0.1",
        "schedule.final_lr_fraction=0.1",
        "schedule.warmup_tokens=0",
        "schedule.name=cosine",
        "model.mlp=swiglu",
        "model.window=8",
        "model.tied=true",
        "model.rope_base=500",
        "data.unique_tokens=1024",
        "eval.sequences=4",
        "eval.points_per_doubling=1",
        "precision=bf16",
        "batch.sequences=8",
    ],
)
def test_what_changes_a_result_changes_the_trial_and_its_family(trial, what):
    plain, other = trial(), trial(what)
    assert other.trial_id != plain.trial_id
    assert other.family_id != plain.family_id


def test_budgets_share_a_family_and_nothing_else(trial):
    small, large = trial(tiny.steps(20)), trial(tiny.steps(60))
    assert small.family_id == large.family_id
    assert small.trial_id != large.trial_id
    assert [t.config.branch_step for t in (small, large)] == [16, 48]


def test_a_cosine_has_no_decay_fraction(trial):
    one = trial("schedule.name=cosine", "schedule.decay_fraction=1")
    assert trial("schedule.name=cosine", "schedule.decay_fraction=0.3").trial_id == one.trial_id


def test_precision_comes_from_the_device_that_was_asked_for(trial):
    assert trial(device="cuda").config.precision == "bf16"
    assert trial("precision=fp32", device="cuda").config.precision == "fp32"
    assert trial(device="cuda").trial_id == trial("precision=bf16").trial_id


def test_what_is_known_before_training(trial):
    t = trial(tiny.steps(40), "data.unique_tokens=1024")
    facts = vars(t.facts)
    assert facts["tokens"] == 5120
    assert facts["flops"] == 5120 * facts["flops_per_token"]
    assert facts["tokens_per_param"] == 5120 / 3088
    assert (facts["unique_tokens"], facts["epochs"]) == (1024, 5.0)
    assert facts["params_total"] == sum(t.params_by_group.values()) == 3088 + 2 * 16 * 257
    assert facts["steps"] * facts["batch_tokens"] == facts["tokens"]
    assert t.trial_id.startswith("3.09k-1x16-5.12ktok-s0-")


def test_a_trial_reads_back(trial, tmp_path):
    plain = trial()
    path = tmp_path / "trial.json"
    plain.keep(path)
    again = Trial.read(path)
    assert asdict(again.config) == asdict(plain.config)
    assert (again.trial_id, again.family_id, again.written) == (plain.trial_id, plain.family_id, plain.written)
    assert again.facts == plain.facts
    before = path.read_bytes()
    plain.keep(path)
    assert path.read_bytes() == before
    with pytest.raises(UserError, match=r"trial\.json: holds another trial than its folder's name says"):
        trial("seed=1").keep(path)


def changed(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_edited_by_hand_is_told(trial, tmp_path):
    path = tmp_path / "trial.json"
    trial().keep(path)
    changed(path, lambda value: value["config"]["optim"].update(lr=0.5))
    with pytest.raises(UserError, match=r"trial\.json: its content gives the id .* edited by hand: use overrides"):
        Trial.read(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value.update(schema_version=0), "schema version 0, this code reads 1"),
        (lambda value: value.pop("schema_version"), "schema version None"),
        (lambda value: value["config"].pop("optim"), "damaged (config.optim is missing); restore or remove it"),
        (lambda value: value["config"]["model"].update(colour="red"), "damaged (config.model.colour='red': unexpected"),
        (lambda value: value["config"].update(model=None), "damaged (config.model=None: input should be"),
        (lambda value: value["config"]["model"].update(heads=0), "model.heads=0"),
        (lambda value: value.pop("written"), "damaged (written is missing)"),
    ],
)
def test_another_version_or_damage_is_told(trial, tmp_path, change, said):
    path = tmp_path / "trial.json"
    trial().keep(path)
    changed(path, change)
    with pytest.raises(UserError) as caught:
        Trial.read(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["budget.tokens=1k", "budget.flops=1e9"], r"give exactly one of .* \(budget.tokens=1k, budget.flops="),
        (["budget.tokens=null"], r"give exactly one of tokens, flops, tokens_per_param \(none is given\)"),
        (["budget.tokens=-5"], "budget.tokens=-5: not a positive number"),
        (["budget.flops=lots"], "budget.flops=lots: not a positive number"),
        (["model.params=1M"], "model.params=1000000: chooses the shape, and so does model.depth=1"),
        (["model.depth=null"], "missing: model.depth"),
        (["model.params=17k", "model.depth=null", "model.width=null", "model.heads=null", "model.ladder=[[1,8,1]]"],
         "model.params=17000: the ladder has no size within 20%"),
        (["model.heads=3"], "model.width=16: must be a multiple of model.heads=3"),
        (["model.mlp=glu"], "model.mlp='glu': must be one of relu2"),
        (["data.unique_tokens=1G"], "data.unique_tokens=1000000000: the training split of .* has"),
        (["data.unique_tokens=5"], "data.unique_tokens=5: under one sequence of 32 tokens"),
        (["data.unique_tokens=all"], "data.unique_tokens=all: not a positive number"),
        (["schedule.warmup_tokens=soon"], "schedule.warmup_tokens=soon: not a positive number"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused(trial, said, reason):
    with pytest.raises(UserError, match=reason) as caught:
        trial(*said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["budget.tokens=63"], "budget.tokens=63: under half a step of 128 tokens"),
        (["schedule.warmup_tokens=5k"], "schedule.warmup_tokens=.*: the warm-up does not fit the 4096 tokens"),
        (["eval.sequences=10k"], "eval"),
        (["eval.sequences=9999"], "eval.sequences=9999: the validation split holds [0-9]+ sequences of 32 tokens"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(trial, tokens, said, reason):
    assert isinstance(tokens, Tokens)
    with pytest.raises(UserError, match=reason):
        check(trial(*said), tokens)


def test_the_largest_numbers_that_fit(trial, tokens):
    check(trial(tiny.steps(40), "schedule.warmup_tokens=4096"), tokens)
    check(trial(tiny.steps(1), "schedule.warmup_tokens=0"), tokens)
