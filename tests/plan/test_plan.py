"""A grid becomes trials, each once, with every point that is left out and why."""

import time
from dataclasses import asdict, replace

import pandas as pd
import pytest

from sweep.common import files
from sweep.common.errors import UserError
from sweep.fit.rows import prepare
from sweep.plan.plan import by_family, refuse_damaged
from sweep.plan.storage import planned_trials, save
from sweep.runs.rundir import RunDir
from sweep.runs.sweepdir import SweepDir
from sweep.verbs.plan import columns, plan_here, price, show
from tests.helpers import tiny

SHAPE_FREE = ("model.depth=", "model.width=", "model.heads=")


@pytest.fixture(autouse=True)
def _here(workspace):
    pass


@pytest.fixture(scope="module")
def sized(overrides):
    """The tiny overrides without a shape, for axes over the ladder."""
    return [text for text in overrides if not text.startswith(SHAPE_FREE)]


def points(plan):
    return [(t.params_non_embedding, t.config.steps, t.config.seed) for t in plan.trials]


def test_axes_in_hydras_grammar_multiply_the_last_one_fastest(sized):
    plan = plan_here([*sized, "model.params=768,3k", tiny.steps(20, 40), "seed=range(2)"])
    assert points(plan) == [(n, s, seed) for n in (776, 3088) for s in (20, 40) for seed in (0, 1)]
    assert [len(family) for family in plan.families()] == [2, 2, 2, 2]
    chosen = plan_here([*sized, "model.params=choice(768,3k)", "budget.flops=choice(1e8,3e8)", "seed=1"])
    assert [t.params_non_embedding for t in chosen.trials] == [776, 776, 3088, 3088]
    assert {t.config.seed for t in chosen.trials} == {1}


def test_without_axes_it_is_one_trial(overrides):
    plan = plan_here([*overrides, tiny.steps(20)])
    assert (plan.name, len(plan.trials), plan.excluded, plan.repeated) == ("adhoc", 1, [], 0)


def test_the_command_line_replaces_an_axis_of_the_sweep(overrides):
    small = [text for text in overrides if not text.startswith((*SHAPE_FREE, "seq_len", "batch"))]
    small += ["seq_len=32", "batch.sequences=4", "sweep.where=[]"]
    plan = plan_here(["sweep=lr", *small, "model.params=3k,5k", "budget.tokens=4k"])
    assert {t.params_non_embedding for t in plan.trials} == {3088, 4820}
    assert {t.written.optim.lr_multiplier for t in plan.trials} == {0.25, 0.5, 1.0, 2.0, 4.0}
    assert {t.tokens for t in plan.trials} == {3968}
    fixed = plan_here(["sweep=lr", *small, "model.params=3k", "optim.lr_multiplier=1", "budget.tokens=4k"])
    assert len(fixed.trials) == 1


def test_groups_are_axes_too(overrides):
    plan = plan_here([*overrides, tiny.steps(20), "schedule=wsd,cosine", "model=gpt,gpt2", "model.head_dim=16"])
    assert [(t.config.schedule.name, t.config.model.norm) for t in plan.trials] == [
        ("wsd", "rmsnorm"),
        ("wsd", "layernorm"),
        ("cosine", "rmsnorm"),
        ("cosine", "layernorm"),
    ]


def test_conditions_leave_points_out_with_their_reasons(sized, capsys):
    where = "sweep.where=['tokens_per_param <= 3','D < 5000 or seed == 0']"
    plan = plan_here([*sized, "model.params=768,3k", tiny.steps(20, 40), "seed=0,1", where])
    assert points(plan) == [(3088, 20, 0), (3088, 20, 1), (3088, 40, 0)]
    left_out = [(tuple(e.overrides), e.condition) for e in plan.excluded]
    assert left_out[-1] == (("model.params=3k", "budget.tokens=5120", "seed=1"), "D < 5000 or seed == 0")
    assert [condition for _, condition in left_out[:-1]] == ["tokens_per_param <= 3"] * 4
    assert plan.excluded[0].facts == "tokens_per_param = 3.299"
    assert "seed = 1" in plan.excluded[-1].facts
    show(plan)
    shown = capsys.readouterr().out
    assert "excluded by tokens_per_param <= 3: 4 points" in shown
    assert "model.params=768 budget.tokens=2560 seed=0" in shown


def test_what_needs_no_data_is_refused_before_data_is_prepared(overrides, workspace):
    with pytest.raises(UserError, match=r"^model\.params=null: give a size"):
        plan_here([tiny.steps(20), "data=markov"])
    assert not (workspace / "tokens").exists()


def test_another_budget_than_the_sweeps_says_which_to_null(overrides):
    small = [text for text in overrides if not text.startswith((*SHAPE_FREE, "seq_len", "batch"))]
    with pytest.raises(UserError, match=r"^budget\.flops: .*gives another budget; null its own: budget\.tokens=null$"):
        plan_here(["sweep=lr", *small, "budget.flops=1e9"])


@pytest.mark.parametrize("axis", ["optim.lr_multiplier=0.5,1,2", "optim.lr=3e-3,6e-3,12e-3"])
def test_a_fit_drops_worse_learning_rates_however_their_axis_is_written(overrides, axis):
    plan = plan_here([*overrides, tiny.steps(20, 40), "seed=0,1", axis])
    facts = [vars(trial.facts) for trial in plan.trials]
    assert {one["lr_multiplier"] for one in facts} == {0.5, 1.0, 2.0}
    table = pd.DataFrame([{**one, "loss_nats": 3 + abs(one["lr"] - 6e-3) + 0.01 * one["seed"]} for one in facts])
    rows = prepare(table)
    assert set(table["lr_multiplier"].iloc[rows.row]) == {1.0}
    assert [one.reason for one in rows.dropped] == ["worse_lr"] * 8


def test_a_point_that_conditions_leave_out_need_not_fit(overrides):
    """Half a step, and more warm-up than there is: only what is to be trained is refused."""
    plan = plan_here([*overrides, "budget.tokens=60,2560", "sweep.where=['steps >= 10']"])
    assert [t.config.steps for t in plan.trials] == [20]


@pytest.mark.parametrize("where", ["colour > 3", "steps", "steps > ", "__import__('os')"])
def test_a_condition_that_cannot_be_judged_is_refused(overrides, where):
    with pytest.raises(UserError, match=r"^where: "):
        plan_here([*overrides, tiny.steps(20), f'sweep.where=["{where}"]'])


def test_points_that_are_the_same_trial_are_planned_once(overrides, capsys):
    plan = plan_here([*overrides, "budget.tokens=2560,2570,5120"])
    assert [t.config.steps for t in plan.trials] == [20, 40]
    assert plan.repeated == 1
    show(plan)
    assert "1 points of the grid are trials named before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["model.params=1M,17"], "model.params=17"),
        (["model.params=3k,10"], r"model\.params=10.*nearest are 776.*\(at model\.params=10"),
        (["model.params=3k", "budget.flops=1e9"], "budget: give exactly one"),
        (["model.params=3k", "optim.lr=interval(1e-4,1e-3)"], r"optim\.lr=interval.*: not a list of values"),
        (["model.params=3k", "run.threads=1,2"], "run.threads: .*the same for all trials"),
        (["model.params=3k", "run=local,gpu"], "run: .*the same for all trials"),
        (["model.params=3k", "optim.lr_base=1e-3,2e-3"], r"optim\.lr_base: .*no axis; .* optim\.lr_multiplier="),
        (
            ["model.params=3k", "optim.lr=1e-3", "optim.lr_multiplier=1,2"],
            r"optim\.lr=0\.001: .*optim\.lr_multiplier=2 .*; give only one .*\(at optim\.lr_multiplier=2\)",
        ),
        (["model.params=3k", "paths.runs=a,b"], "paths.runs: .*the same for all trials"),
        (["model.params=3k", "sweep=default,lr"], "sweep: .*the same for all trials"),
        (["model.params=3k", "sweep.name=../else"], "sweep.name=../else"),
        (["model.params=3k", "sweep.name=''"], "sweep.name="),
        (
            ["model.params=3k", "run.micro_batch_sequences=3"],
            "run.micro_batch_sequences=3: must divide batch.sequences=4",
        ),
        (["model.params"], "model.params: not an override; write key=value"),
        (["model.params=3k", "nothing=1,2"], "nothing"),
        (["model.params=3k", "model.nothing=1,2"], "model.nothing=1,2: unknown key"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(sized, said, reason):
    with pytest.raises(UserError, match=reason) as caught:
        plan_here([*sized, tiny.steps(20), *said])
    assert "\n" not in str(caught.value)


def test_a_trial_that_does_not_fit_the_device_is_refused_with_the_estimate(overrides):
    with pytest.raises(UserError, match=r"needs about [0-9.]+ KiB of device memory and there are 0.0 GiB; give a"):
        plan_here([*overrides, tiny.steps(20), "cluster.device_memory_gib=5e-4"])
    fits = [*overrides, tiny.steps(20), "cluster.device_memory_gib=5e-4", "run.micro_batch_sequences=1"]
    assert len(plan_here(fits).trials) == 1


def test_a_plan_for_a_gpu_can_be_made_without_one(sized):
    gpu = [text for text in sized if text != "run.device=cpu"]
    plan = plan_here([*gpu, "model.params=3k", tiny.steps(20), "run=gpu", "cluster=h100"])
    assert (plan.device, plan.trials[0].config.precision) == ("cuda", "bf16")
    assert "guess" in price(plan, set())


def test_what_is_done_is_left_out_of_the_price(overrides, capsys):
    plan = plan_here([*overrides, tiny.steps(20, 40), "cluster.dollars_per_device_hour=3600"])
    whole, parts = plan.family_seconds(plan.trials), [plan.estimates[t.trial_id].seconds for t in plan.trials]
    # The trunk of the longer one once, and a fifth of each.
    assert whole == pytest.approx(0.8 * parts[1] + 0.2 * sum(parts))
    assert f"price ${whole:.2f} at $3600.00 a device-hour" in price(plan, plan.done())
    first = RunDir.of_trial(plan.runs, plan.trials[0].trial_id)
    first.path.mkdir(parents=True)
    first.record.write_text("{}")
    assert plan.done() == {plan.trials[0].trial_id}
    assert "1 done, 1 to train in 1 family" in price(plan, plan.done())
    assert f"price ${parts[1]:.2f}" in price(plan, plan.done())
    show(plan)
    assert "done" in capsys.readouterr().out
    assert price(plan, {t.trial_id for t in plan.trials}) == "all 2 trials are done"
    one = replace(plan, trials=plan.trials[:1])
    assert price(one, {plan.trials[0].trial_id}) == "the trial is done"


# ---- the sweep's folder ----


def saved(plan, extend=False):
    sweep = SweepDir(plan.runs.parent / "sweeps" / "mine")
    save(plan, sweep, [], extend=extend)
    return sweep


def test_a_saved_plan_reads_back_the_longest_family_first(overrides):
    plan = plan_here([*overrides, "sweep.name=mine", tiny.steps(20, 40), "seed=0,1"])
    sweep = saved(plan)
    assert {t.trial_id for t in planned_trials(sweep)} == {t.trial_id for t in plan.trials}
    assert [t.trial_id for f in by_family(planned_trials(sweep)) for t in f] == [
        t.trial_id for f in plan.families() for t in f
    ]
    settings = sweep.settings()
    assert (settings.name, settings.device, settings.run.threads) == ("mine", "cpu", 1)


def test_a_name_that_holds_another_grid_is_refused_unless_it_is_extended(overrides):
    whole = plan_here([*overrides, "sweep.name=mine", tiny.steps(20, 40, 60)])
    first, second, third = whole.trials
    sweep = saved(replace(whole, trials=[first, second]))
    saved(replace(whole, trials=[second, first]))  # the same grid
    saved(replace(whole, trials=[first]))  # a part of it: goes on, and takes nothing away
    assert sorted(t.config.steps for t in planned_trials(sweep)) == [20, 40]
    for others in ([first, second, third], [third]):
        with pytest.raises(UserError, match=r"sweep.name=mine: .*.*holds another grid, of 2 .* launch with --extend"):
            saved(replace(whole, trials=others))
        assert sorted(t.config.steps for t in planned_trials(sweep)) == [20, 40]
    for _ in range(2):
        saved(replace(whole, trials=[third]), extend=True)
        assert sorted(t.config.steps for t in planned_trials(sweep)) == [20, 40, 60]


def test_a_damaged_plan_is_named(overrides):
    sweep = saved(plan_here([*overrides, "sweep.name=mine", tiny.steps(20)]))
    sweep.plan.write_text(sweep.plan.read_text() + '{"trial_id"\n')
    with pytest.raises(UserError, match=r"plan\.jsonl:2: damaged \(invalid JSON: .*\); remove it and launch again"):
        planned_trials(sweep)


def test_a_damaged_record_is_no_finished_trial(overrides):
    plan = plan_here([*overrides, tiny.steps(20, 40)])
    refuse_damaged(plan)
    records = [RunDir.of_trial(plan.runs, trial.trial_id).record for trial in plan.trials]
    for record in sorted(records):
        record.parent.mkdir(parents=True)
        record.write_text('{"trial_id":')
    with pytest.raises(UserError, match=rf"^{min(records)}: damaged .*\(and 1 more records\)$"):
        refuse_damaged(plan)
    assert columns(plan, plan.done())[""] == ["damaged", "damaged"]


def test_a_sweep_knows_the_overrides_that_it_was_launched_with(overrides):
    sweep = saved(plan_here([*overrides, tiny.steps(20)]))
    assert sweep.overrides() == []
    settings = asdict(sweep.settings())
    del settings["overrides"]  # of an older version
    settings["command"] = ["python", "-m", "sweep", "launch", "sweep=lr", "--extend"]
    files.write_json(sweep.path / "sweep.json", settings)
    assert sweep.overrides() == ["sweep=lr"]


def test_sweeps_are_found_by_name_or_folder(overrides, workspace):
    sweep = saved(plan_here([*overrides, "sweep.name=mine", tiny.steps(20)]))
    assert SweepDir.find("mine").path.resolve() == sweep.path.resolve()
    assert SweepDir.find(str(workspace / "sweeps" / "mine")).name == "mine"
    with pytest.raises(UserError, match="yours: no such sweep; there are: mine"):
        SweepDir.find("yours")


def test_five_hundred_points_take_a_second_or_two(sized):
    """65 ms each would be half a minute; the limit leaves room for a slow machine."""
    start = time.monotonic()
    plan = plan_here([*sized, "model.params=768,1.7k,3k,5k,7k", tiny.steps(*range(10, 60, 5)), "seed=range(10)"])
    assert len(plan.trials) == 500
    assert time.monotonic() - start < 12


def test_a_grid_of_which_nothing_is_left_is_refused(overrides):
    with pytest.raises(UserError, match=r"all 2 are excluded by tokens > 1e12"):
        plan_here([*overrides, tiny.steps(20, 40), 'sweep.where=["tokens > 1e12"]'])


def test_the_table_shows_the_axes_that_an_id_does_not(overrides, capsys):
    show(plan_here([*overrides, tiny.steps(20), "optim.lr_multiplier=0.5,2", "seed=0,1"]))
    shown = capsys.readouterr().out
    assert "lr_multiplier" in shown
    assert "seed " not in shown
    assert sum(" 0.5 " in line for line in shown.splitlines()) == 2
