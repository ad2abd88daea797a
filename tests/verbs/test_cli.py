"""Bad input: one clear line on standard error that names the key or file, the value and what to do; exit status 2."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sweep import cli as entry
from sweep.cli import VERBS, main
from sweep.common.errors import UserError
from sweep.runs.lookup import one_run
from sweep.runs.rundir import RunDir
from sweep.verbs.plan import plan_here
from tests.helpers import tiny


@pytest.fixture(autouse=True)
def _here(workspace):
    pass


@pytest.fixture
def refused(capsys):
    """The one line with which a verb refuses these arguments."""

    def verb(*arguments) -> str:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert status == 2, captured
        assert "Traceback" not in captured.out + captured.err
        *before, line = captured.err.splitlines()
        assert all(other.startswith(("prepar", "3.09k-1x16-")) for other in before), captured.err  # what it is doing
        assert line.startswith(f"python -m sweep {arguments[0]}: ")
        return line.partition(f"sweep {arguments[0]}: ")[2]

    return verb


# ---- the command line itself ----


def test_help_lists_every_verb_with_what_it_does(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for verb in VERBS:
        assert re.search(rf"^    {verb}\s+\w", shown, re.MULTILINE), verb
    assert not re.search(r"^    work ", shown, re.MULTILINE)
    assert "python -m sweep launch sweep=default" in shown


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_helps(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: python -m sweep {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["lunch"], ["plan", "--colour"], ["collect"]])
def test_a_wrong_command_shows_its_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m sweep" in capsys.readouterr().err


def test_a_misspelt_verb_or_sweep_gets_a_guess(refused, swept, capsys):
    with pytest.raises(SystemExit):
        main(["lanch"])
    assert "lanch: no such verb; did you mean launch?" in capsys.readouterr().err
    for verb in ("status", "fit"):
        assert "did you mean small?" in refused(verb, "smal")


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    def interrupt(parser, args=None):
        raise KeyboardInterrupt

    verb = entry._verb("clean")
    monkeypatch.setattr(verb, "run", lambda args: interrupt(None))
    assert main(["clean"]) == 130
    assert capsys.readouterr().err == "python -m sweep clean: interrupted\n"


def test_a_full_disk_is_one_line_anywhere(monkeypatch, capsys):
    def full(args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(entry._verb("clean"), "run", full)
    assert main(["clean"]) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_a_bug_is_not_hidden(monkeypatch):
    def bug(args):
        raise TypeError("ours")

    monkeypatch.setattr(entry._verb("clean"), "run", bug)
    with pytest.raises(TypeError, match="ours"):
        main(["clean"])


# ---- config ----


@pytest.mark.parametrize("verb", ["launch", "train"])
@pytest.mark.parametrize(
    ("said", "line"),
    [
        (["model.dept=3"], "model.dept=3: unknown key; did you mean model.depth?"),
        (["optim.lr=fast"], "optim.lr=fast: must be a number or null"),
        (["budget.flops=1e9"], "budget: give exactly one of tokens, flops, tokens_per_param (budget.tokens=2560, "),
        (["model.params=17", "model.depth=null", "model.width=null", "model.heads=null"],
         "model.params=17: the ladder has no size within 20%"),
        (["seq_len=200000", "eval.sequences=1"], "seq_len=200000: the training split holds "),
        (["data.unique_tokens=1G"], "data.unique_tokens=1000000000: the training split of"),
        (["run.backend=flash"], "run.backend=flash: must be one of auto, "),
    ],
)  # fmt: skip
def test_impossible_trials_are_refused_before_anything_is_written(refused, overrides, workspace, verb, said, line):
    assert refused(verb, *overrides, tiny.steps(20), *said).startswith(line)
    assert not list(workspace.rglob("record.json"))
    assert not list(workspace.glob("sweeps/*"))


def test_a_gpu_that_is_not_there_is_told(refused, overrides):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    said = [*(text for text in overrides if text != "run.device=cpu"), tiny.steps(20), "run.device=cuda"]
    assert refused("train", *said).startswith("run.device=cuda: torch sees no CUDA device here")
    assert refused("train", *said, "cluster=h100").startswith("run.device=cuda: torch sees no CUDA device here")


def test_train_takes_one_trial(refused, overrides):
    assert refused("train", *overrides, tiny.steps(20, 40)).startswith("2 trials: train takes one; ")


# ---- data ----


def test_bad_text_is_refused(refused, workspace, overrides):
    (workspace / "empty.txt").write_text("")
    (workspace / "binary.txt").write_bytes(bytes(range(256)))
    (workspace / "photo.png").write_bytes(b"x")
    (workspace / "rows.jsonl").write_text('{"text": "a"}\n{"text"\n')
    for pattern, line in (
        ("empty.txt", "empty.txt: the file is empty; remove it from data.files"),
        ("binary.txt", "binary.txt: not UTF-8 text (a binary file?)"),
        ("photo.png", "photo.png: unknown file type; data=text reads .txt, .jsonl, .parquet"),
        ("rows.jsonl", "rows.jsonl:2: not valid JSON"),
        ("gone/*.txt", "data.files: nothing matches gone/*.txt; check the path"),
        (".", "data.files: . is a folder; name files in it, e.g. *.txt"),
    ):
        assert line in refused("prepare", "data=text", f"data.files=[{pattern}]")
    assert "data.files=[]: name at least one file" in refused("prepare", "data=text")
    assert "data.validation_fraction=2" in refused("prepare", "data=text", "data.validation_fraction=2")


def test_a_damaged_shard_is_named(refused, overrides, prepared, workspace):
    shutil.copytree(prepared[1], workspace / "tokens")
    here = [*(text for text in overrides if not text.startswith("paths.tokens")), tiny.steps(20)]
    (shard,) = (workspace / "tokens").glob("*/train.bin")
    shard.write_bytes(shard.read_bytes()[:-2])
    for verb in ("plan", "train"):
        line = refused(verb, *here)
        assert line.startswith(f"tokens/{shard.parent.name}/train.bin: damaged (")
        assert "delete the folder" in line


# ---- what lies on disk ----


@pytest.fixture
def swept(overrides):
    """A launched sweep, whose workers trained nothing."""
    plan, sweep = tiny.make_sweep([*overrides, tiny.steps(20, 40)])
    return plan, sweep


def test_options_may_stand_anywhere(overrides, workspace, capsys):
    for place in (0, 1, len(overrides)):
        assert main(["plan", *overrides[:place], "--json", *overrides[place:], tiny.steps(20)]) == 0
        assert capsys.readouterr().out.startswith('{"schema_version"')


def test_sweeps_that_are_not_there(refused, swept):
    assert refused("collect", "other") == "other: no such sweep; there are: small"
    shutil.rmtree("sweeps")
    said = f"other: no such sweep; {Path('sweeps').absolute()} has none; launch one, or be where one was launched"
    assert refused("collect", "other") == said
    for verb in ("report", "fit", "predict"):
        said = "no-such: no sweeps/no-such/table.parquet (no sweep is collected yet); run `python -m sweep collect no"
        assert refused(verb, "no-such").startswith(said)


def test_every_verb_that_takes_a_sweep_finds_it_in_another_folder(refused, swept):
    shutil.move("sweeps", "elsewhere")
    for verb in ("status", "cancel", "retry", "collect", "sync", "dashboard"):
        assert refused(verb, "gone", "--sweeps", "elsewhere") == "gone: no such sweep; there are: small"
    assert main(["collect", "small", "--sweeps", "elsewhere"]) == 0
    for verb in ("fit", "report", "predict"):
        assert "(collected sweeps: small)" in refused(verb, "gone", "--sweeps", "elsewhere")
    assert "there are: small" in refused("next", "gone", "--sweeps", "elsewhere", "--budget", "1e9")


def test_a_run_is_its_id_or_a_prefix_that_no_other_has():
    known = ["a-1", "a-12", "b-3"]
    assert [one_run(name, known, "runs/") for name in ("a-1", "a-12", "b")] == ["a-1", "a-12", "b-3"]
    for name, said in (
        ("a", "a: 2 runs begin with it: a-1, a-12"),
        ("b-4", "b-4: no such run in runs/; close to it: b-3"),
        ("x", "x: no such run in runs/; give an id or a unique prefix of one"),
    ):
        with pytest.raises(UserError, match=f"^{said}$"):
            one_run(name, known, "runs/")


def test_a_name_with_another_grid(refused, swept, overrides):
    line = refused("launch", *overrides, "sweep.name=small", tiny.steps(20, 60))
    assert line.startswith(
        "sweep.name=small: sweeps/small/plan.jsonl holds another grid, of 2 trials; 1 of the 2 asked for"
    )
    assert "differs in steps=60, there " in line
    assert "--extend" in line
    other = refused("launch", *overrides, "sweep.name=small", tiny.steps(20, 40), "precision=bf16")
    assert "2 of the 2 asked for" in other
    assert " differs in precision=bf16, there fp32); " in other


def test_a_damaged_plan_or_settings(refused, swept):
    _, sweep = swept
    (sweep.path / "sweep.json").write_text("{")
    assert refused("collect", "small").startswith("sweeps/small/sweep.json: damaged")
    (sweep.path / "sweep.json").unlink()
    assert refused("collect", "small") == "sweeps/small/sweep.json: no such file"
    sweep.plan.write_text("{\n")
    assert refused("work", sweep.path).startswith("sweeps/small/")


def test_a_run_of_another_schema_version(refused, swept, capsys):
    plan, sweep = swept
    trial = plan.trials[0]
    run = RunDir.of_trial(plan.runs, trial.trial_id)
    trial.keep(run.trial)
    run.trial.write_text(json.dumps({**json.loads(run.trial.read_text()), "schema_version": 0}))
    assert "trial.json: schema version 0, this code reads 1; use the code that wrote it" in refused("rerun", run.path)
    sweep.plan.write_text(json.dumps({**trial.to_json(), "schema_version": 0}) + "\n")
    assert "plan.jsonl:1: schema version 0" in refused("work", sweep.path)
    # A trial whose folder is of another version fails alone, in one line; nothing in it is overwritten.
    assert tiny.train(replace(plan, trials=[trial])) == 1
    assert "schema version 0" in capsys.readouterr().err
    assert json.loads(run.trial.read_text())["schema_version"] == 0


def test_a_damaged_record_is_told_by_the_verbs_that_read_it(refused, swept, overrides, capsys):
    plan, sweep = swept
    run = RunDir.of_trial(plan.runs, plan.trials[0].trial_id)
    plan.trials[0].keep(run.trial)
    run.record.write_text('{"schema_version": 1}')
    assert "record.json: damaged (trial_id is missing)" in refused("rerun", run.path)
    assert "record.json: damaged (trial_id is missing)" in refused("train", *overrides, tiny.steps(20))
    assert main(["collect", str(sweep.path)]) == 0
    assert "1 damaged" in capsys.readouterr().out


def test_folders_that_cannot_be_written_to_are_told(refused, overrides, workspace):
    (workspace / "file").write_text("")
    assert refused("launch", *overrides, tiny.steps(20), "paths.runs=file").startswith("paths.runs=file: is a file")
    assert refused("launch", *overrides, tiny.steps(20), "paths.sweeps=file/x").startswith("paths.sweeps=file/x: ")


# ---- and what is right works ----


def test_plan_shows_the_trials_as_a_table_or_as_json(overrides, capsys):
    assert main(["plan", *overrides, tiny.steps(20, 40)]) == 0
    shown = capsys.readouterr().out
    plan = plan_here([*overrides, tiny.steps(20, 40)])
    assert all(trial.trial_id in shown for trial in plan.trials)
    assert "0 done, 2 to train in 1 family" in shown
    assert main(["plan", *overrides, tiny.steps(20, 40), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["trial_id"] for line in lines] == [trial.trial_id for trial in plan.trials]
    assert main(["launch", "--dry-run", *overrides, tiny.steps(20, 40)]) == 0
    assert plan.trials[0].trial_id in capsys.readouterr().out


def test_a_narrow_terminal_keeps_the_trials_names(overrides, capsys, monkeypatch):
    grid = [*overrides, tiny.steps(20, 40), "optim.lr=1e-3,2e-3"]
    assert main(["plan", *grid]) == 0
    piped = capsys.readouterr().out
    assert "epochs" in piped
    assert not [line for line in piped.splitlines() if line != line.rstrip()]
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    assert main(["plan", *grid]) == 0
    narrow = capsys.readouterr().out
    assert all(trial.trial_id in narrow for trial in plan_here(grid).trials)
    table = narrow.partition("-\n")[2].partition("\n\n")[0].splitlines()
    assert len(table) == 4
    assert max(map(len, table)) <= 80
    assert "(a wider terminal also shows epochs" in narrow
