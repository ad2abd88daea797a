import argparse
import json
import subprocess
import sys

import pytest

from benchmarks.fit_simulation import BESIROGLU, table
from sweep.errors import UserError
from sweep.verbs import fit as verb


def run(*words):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args([*(str(w) for w in words), "--no-report"]))


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "runs.csv"
    frame = table(BESIROGLU, run_sd=0.002).rename(columns={"loss": "final", "N": "size"})
    frame.to_csv(path, index=False)
    return path


COLUMNS = "--columns=loss=final,N=size"


def test_writes_fit_json_beside_the_table(csv, capsys):
    assert run(csv, COLUMNS) == 0
    values = json.loads((csv.parent / "fit.json").read_text())
    assert values["params"]["alpha"] == pytest.approx(BESIROGLU["alpha"], abs=0.02)
    printed = capsys.readouterr().out
    assert "N_opt ~ C^" in printed
    assert "refused: no training curves" in printed


def test_json_alone_on_standard_output(csv, capsys):
    assert run(csv, COLUMNS, "--json", "-", "--where", "C < 5e20") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["n_rows"] == 80
    assert {d["reason"] for d in values["dropped"]} == {"outside_range"}
    assert not (csv.parent / "fit.json").exists()


def test_out_folder(csv, tmp_path):
    assert run(csv, COLUMNS, "--out", tmp_path / "deep" / "er") == 0
    assert (tmp_path / "deep" / "er" / "fit.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--form", "cubic"], "no such form"),
        (["--objective", "mean"], "no such objective"),
        (["--delta", "0"], "must be a positive number"),
        (["--where", "C <"], "cannot read"),
        (["--where", "C < 0"], "no usable row"),
        (["--n", "active"], "convention"),
    ],
)
def test_bad_options_are_one_line(csv, words, message):
    with pytest.raises(UserError, match=message) as error:
        run(csv, COLUMNS, *words)
    assert "\n" not in str(error.value)


def test_starts_without_the_heavy_libraries():
    heavy = "{'torch', 'wandb', 'datasets', 'models', 'kernels', 'matplotlib'}"
    code = f"import sys, sweep.fit, sweep.verbs.fit, sweep.where, sweep.table; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_refused_fit_leaves_its_reason_and_no_older_fit(csv, capsys):
    run(csv, COLUMNS, "--bootstrap", "0")
    with pytest.raises(UserError, match="no usable row"):
        run(csv, COLUMNS, "--where", "C < 0")
    assert json.loads((csv.parent / "fit.json").read_text()) == {
        "refused": "no usable row among 100: 100 outside_range"
    }


def test_budget_and_target_loss_are_answered(csv, capsys):
    run(csv, COLUMNS, "--bootstrap", "100", "--budget", "1e22,1e23", "--target-loss", "2.2")
    printed = capsys.readouterr().out
    assert "C = 1.00e+23" in printed
    assert "loss 2.2 takes at least C = " in printed
    with pytest.raises(UserError, match="no compute reaches it"):
        run(csv, COLUMNS, "--bootstrap", "0", "--target-loss", "1.0")


def test_a_file_gets_a_report_too(csv, capsys, monkeypatch):
    from sweep import report

    written = {}
    monkeypatch.setattr(report, "write", lambda results, out: written.update(results=results, out=out))
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    verb.run(parser.parse_args([str(csv), COLUMNS, "--bootstrap", "0"]))
    assert written["out"] == csv.parent / "report"
    assert len(written["results"].finished) == 100
    assert "report.html" in capsys.readouterr().out
