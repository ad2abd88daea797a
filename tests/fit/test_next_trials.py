"""What to run next: the update is the Gaussian one, the budget holds, and the proposals can be launched as printed."""

import shlex
from dataclasses import asdict

import numpy as np
import pytest

from sweep.cli import main
from sweep.common.errors import UserError
from sweep.common.files import append_json, write_json
from sweep.common.units import short
from sweep.fit.fitted_law import FittedLaw
from sweep.fit.frontier import FlopsModel
from sweep.fit.laws import law_named
from sweep.fit.next_trials import propose, questions
from sweep.plan.storage import planned_trials, save
from sweep.runs.record import Record
from sweep.runs.rundir import RunDir
from sweep.verbs import next as next_verb
from sweep.verbs.plan import plan_here
from tests.helpers import tiny

SIZES = "model.params=1.7k,3k,7k,12k,28k,55k,98k"
BUDGETS = "budget.flops=4e10,1e11,3e11,9e11"
DATA = ["data=markov", "data.tokens=60000", "eval.sequences=8"]
GRID = [*DATA, "seq_len=128", "batch.sequences=8", "schedule.warmup_tokens=4k"]


def law(N: float, D: float) -> float:
    return 1.7 + 30 * N**-0.4 + 200 * D**-0.42


def joint(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two questions; the first candidate tells much of both, the second some of one, the third nothing."""
    z = rng.normal(size=(4000, 4))
    questions = np.stack([z[:, 0], z[:, 0] + z[:, 1]], axis=1)
    return questions, np.stack([z[:, 0] + 0.1 * z[:, 2], z[:, 1] + z[:, 2], z[:, 3]], axis=1)


def test_the_most_telling_candidate_comes_first_and_leaves_the_conditional_variance():
    questions_BQ, outcomes_BM = joint(np.random.default_rng(0))
    choices = propose(questions_BQ, outcomes_BM, 0.2, lambda j, chosen: 1.0, 2.0)
    assert [choice.index for choice in choices] == [0, 1]
    S = np.cov(np.concatenate([questions_BQ, outcomes_BM[:, :2]], axis=1), rowvar=False)
    observed = S[2:, 2:] + 0.2 * np.eye(2)
    left = S[:2, :2] - S[:2, 2:] @ np.linalg.solve(observed, S[2:, :2])
    np.testing.assert_allclose(choices[1].left_Q, np.sqrt(np.diag(left) / np.diag(S)[:2]), rtol=1e-10)


def test_a_cheaper_candidate_wins_by_what_it_tells_per_flop_and_the_budget_holds():
    questions_BQ, outcomes_BM = joint(np.random.default_rng(1))
    price = {0: 100.0, 1: 1.0, 2: 1.0}
    choices = propose(questions_BQ, outcomes_BM, 0.2, lambda j, chosen: price[j], 50.0)
    assert choices[0].index == 1
    assert all(choice.index != 0 for choice in choices)
    assert propose(questions_BQ, outcomes_BM, 0.2, lambda j, chosen: price[j], 0.5) == []


@pytest.fixture
def fitted_sweep(workspace):
    """A sweep whose losses follow a known law, with family and row noise, collected and fitted by the verbs."""
    plan, sweep = tiny.make_sweep([*GRID, SIZES, BUDGETS, "seed=0,1"], name="known")
    rng = np.random.default_rng(0)
    shift: dict[str, float] = {}
    for trial in plan.trials:
        family = shift.setdefault(trial.family_id, rng.normal(0, 0.003))
        loss = law(trial.params_non_embedding, trial.tokens) * float(np.exp(family + rng.normal(0, 0.003)))
        make_run(RunDir.of_trial(plan.runs, trial.trial_id), trial, loss)
    assert main(["collect", "known"]) == 0
    assert main(["fit", "known", "--bootstrap", "200"]) == 0
    return sweep


def make_run(run: RunDir, trial, loss: float) -> None:
    record = Record(
        trial_id=trial.trial_id, family_id=trial.family_id, status="finished", params=trial.params_by_group,
        params_non_embedding=trial.params_non_embedding, params_total=trial.params_total, tokens=trial.tokens,
        flops=trial.flops, flops_per_token=float(trial.flops_per_token.exact), steps_done=trial.config.steps,
        loss_nats=loss, best_loss_nats=loss, best_tokens=trial.tokens, train_loss_nats=loss, bits_per_byte=None,
        shared_steps=0, wall_seconds=1.0, own_seconds=1.0, tokens_per_second=1.0, device="none",
        execution_class="none", execution_classes=["none"], code_hash="none", finished_at=0.0,
    )  # fmt: skip
    write_json(run.record, asdict(record))
    row = {"step": trial.config.steps, "tokens": trial.tokens, "flops": trial.flops, "phase": "decay"}
    append_json(run.metrics, row)


@pytest.mark.slow
def test_the_commands_it_prints_plan_just_the_trials_it_proposes(fitted_sweep, capsys):
    capsys.readouterr()
    assert main(["next", "known", "--budget", "3e12"]) == 0
    printed = capsys.readouterr().out
    commands = [shlex.split(line)[4:] for line in printed.splitlines() if "-m sweep launch" in line]
    known = {line.trial_id for line in fitted_sweep.planned()}
    planned = [t for words in commands for t in plan_here([w for w in words if w != "--extend"]).trials]
    assert planned
    assert known.isdisjoint(trial.trial_id for trial in planned)
    assert printed.count("intervals left") == len(planned)
    assert sum(trial.flops for trial in planned) >= 1e12  # the budget is used; shared trunks cost nothing


@pytest.mark.slow
def test_no_candidate_repeats_its_data_more_than_the_sweep_does(fitted_sweep):
    most = max(trial.epochs for trial in planned_trials(fitted_sweep))
    beyond = next_verb._candidates(fitted_sweep, 3e13).trials
    assert max(trial.flops for trial in beyond) > 1e13
    assert max(trial.epochs for trial in beyond) <= most


@pytest.mark.slow
@pytest.mark.parametrize("said", [["--flops", "1e13"], ["--params", "12k", "--tokens", "30M"]])
def test_what_is_predicted_is_what_its_launch_trains_and_is_recognised(fitted_sweep, capsys, said):
    capsys.readouterr()
    assert main(["predict", "known", *said]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:4] == ["python", "-m", "sweep", "launch"]
    words = [word.replace("seed=0,1", "seed=0") for word in command[4:] if word != "--extend"]
    plan = plan_here(words)
    (trial,) = plan.trials
    assert main(["predict", "known", "--score"]) == 0
    assert "not trained yet" in capsys.readouterr().out
    save(plan, fitted_sweep, words, extend=True)
    loss = law(trial.params_non_embedding, trial.tokens)
    make_run(RunDir.of_trial(plan.runs, trial.trial_id), trial, loss)
    assert main(["collect", "known"]) == 0
    capsys.readouterr()
    assert main(["predict", "known", "--score"]) == 0
    shown = capsys.readouterr().out
    assert f"{loss:.4f}; predicted for N = {short(trial.params_non_embedding)}, D = {short(trial.tokens)} as" in shown


def test_a_size_that_no_launch_trains_is_predicted_all_the_same(fitted_sweep, capsys):
    capsys.readouterr()
    assert main(["predict", "known", "--params", "9T", "--flops", "1e30"]) == 0
    captured = capsys.readouterr()
    assert "no launch in known trains just this: model.params=9000000000000: the ladder has no size" in captured.err
    assert "to train it" not in captured.out


@pytest.mark.slow
def test_what_next_cannot_do_is_one_line(fitted_sweep, capsys):
    assert main(["next", "known", "--budget", "lots"]) == 2
    assert "--budget=lots" in capsys.readouterr().err
    assert main(["next", "known", "--budget", "1e6"]) == 1
    assert "raise --budget" in capsys.readouterr().out
    assert main(["fit", "known", "--bootstrap", "0"]) == 0
    assert main(["next", "known", "--budget", "1e12"]) == 2
    error = capsys.readouterr().err
    assert "replicates" in error
    assert "Traceback" not in error


def test_without_replicates_there_is_nothing_to_go_by():
    law = FittedLaw(law_named("additive"), {}, FlopsModel(6.0, 1.0))
    with pytest.raises(UserError, match="replicates"):
        questions(law, 1e12)
