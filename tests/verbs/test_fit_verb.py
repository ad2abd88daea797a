import argparse
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from benchmarks.fit_simulation import BESIROGLU, table
from sweep.cli import main
from sweep.common.errors import UserError
from sweep.fit.table import ROLE_COLUMNS
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


def test_writes_the_fit_beside_the_table(csv, capsys):
    assert run(csv, COLUMNS) == 0
    values = json.loads((csv.parent / "runs.fit.json").read_text())
    assert values["params"]["alpha"] == pytest.approx(BESIROGLU["alpha"], abs=0.02)
    printed = capsys.readouterr().out
    assert "N_opt ~ C^" in printed
    assert "refused: no training curves" in printed


def test_json_alone_on_standard_output(csv, capsys):
    assert run(csv, COLUMNS, "--json", "--where", "C < 5e20") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["n_rows"] == 80
    assert {d["reason"] for d in values["dropped"]} == {"outside_range"}
    assert [path.name for path in csv.parent.iterdir()] == ["runs.csv"]


def test_out_folder(csv, tmp_path):
    assert run(csv, COLUMNS, "--out", tmp_path / "deep" / "er") == 0
    assert (tmp_path / "deep" / "er" / "runs.fit.json").is_file()


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
    code = "import sys, sweep.fit.fit, sweep.verbs.fit, sweep.common.expressions, sweep.fit.table;"
    code += f"print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_refused_fit_of_a_sweep_leaves_its_reason_and_no_older_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps" / "mine").mkdir(parents=True)
    table(BESIROGLU, run_sd=0.002).to_parquet("sweeps/mine/table.parquet")
    run("mine", "--bootstrap", "0")
    assert "params" in json.loads((tmp_path / "sweeps" / "mine" / "fit.json").read_text())
    assert "python -m sweep report mine" in capsys.readouterr().out
    with pytest.raises(UserError, match="no usable row"):
        run("mine", "--where", "C < 0")
    assert json.loads((tmp_path / "sweeps" / "mine" / "fit.json").read_text()) == {
        "refused": "no usable row among 100: 100 outside_range (--where 'C < 0')"
    }


def test_a_fit_put_elsewhere_names_no_report_of_another_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps" / "mine").mkdir(parents=True)
    table(BESIROGLU, run_sd=0.002).to_parquet("sweeps/mine/table.parquet")
    run("mine", "--bootstrap", "0", "--out", "elsewhere")
    printed = capsys.readouterr().out
    assert printed.endswith("written to elsewhere/fit.json\n")
    assert "sweep report" not in printed


def test_the_page_of_somebodys_table_claims_only_what_the_table_says(csv):
    pd.read_csv(csv).drop(columns="C").to_csv(csv, index=False)
    assert main(["fit", str(csv), COLUMNS, "--bootstrap", "0"]) == 0
    page = json.loads((csv.parent / "runs.report" / "report.json").read_text())
    said = json.dumps(page, ensure_ascii=False)
    assert "parameters N (size)" in said
    assert "non-embedding" not in said
    assert "which was assumed: the table has no column for it" in said
    assert not page["timed"]
    assert "device-hours</th>" not in (csv.parent / "runs.report" / "report.html").read_text()


def test_a_refused_fit_of_a_file_leaves_the_fit_there(csv, capsys):
    run(csv, COLUMNS, "--bootstrap", "0")
    before = (csv.parent / "runs.fit.json").read_bytes()
    with pytest.raises(UserError, match="no usable row"):
        run(csv, COLUMNS, "--where", "C < 0")
    assert (csv.parent / "runs.fit.json").read_bytes() == before
    assert {path.name for path in csv.parent.iterdir()} == {"runs.csv", "runs.fit.json"}


def test_two_files_of_one_folder_keep_apart(csv, capsys):
    other = csv.with_name("other.csv")
    other.write_text(csv.read_text())
    run(csv, COLUMNS, "--bootstrap", "0")
    run(other, COLUMNS, "--bootstrap", "0", "--where", "C < 5e20")
    rows = {name: json.loads((csv.parent / f"{name}.fit.json").read_text())["n_rows"] for name in ("runs", "other")}
    assert rows == {"runs": 100, "other": 80}
    assert "dropped: 20 outside_range (--where 'C < 5e20')" in capsys.readouterr().out


def test_rows_without_a_positive_size_are_dropped_and_the_rest_fitted(csv, capsys):
    frame = pd.read_csv(csv)
    frame.loc[[3, 9], "size"] = [-5.0, 0.0]
    frame.drop(columns="C").to_csv(csv, index=False)
    assert run(csv, COLUMNS, "--bootstrap", "0") == 0
    printed = capsys.readouterr().out
    assert "additive on 98 rows of 20 families" in printed
    assert "dropped: 2 not_positive" in printed
    assert "warning: no column for C: C = 6 N D was assumed" in printed


def test_one_family_is_one_family(csv, capsys):
    frame = pd.read_csv(csv).assign(family="only")
    frame.to_csv(csv, index=False)
    run(csv, COLUMNS, "--bootstrap", "0")
    assert "additive on 100 rows of 1 family\n" in capsys.readouterr().out


def test_help_names_every_role_and_how_json_is_asked_for():
    parser = argparse.ArgumentParser(prog="fit")
    verb.add_arguments(parser)
    text = " ".join(parser.format_help().split())
    roles = re.search(r"ROLE: (.+?) or phase", text)[1]
    assert set(roles.split(", ")) | {"phase"} == set(ROLE_COLUMNS)
    assert "[--json]" in text


def test_budget_and_target_loss_are_answered(csv, capsys):
    run(csv, COLUMNS, "--bootstrap", "100", "--budget", "1e22,1e23", "--target-loss", "2.2")
    printed = capsys.readouterr().out
    assert "C = 1.00e+23" in printed
    assert "loss 2.2 takes at least C = " in printed
    with pytest.raises(UserError, match="no compute reaches it"):
        run(csv, COLUMNS, "--bootstrap", "0", "--target-loss", "1.0")


def test_a_file_gets_a_report_too(csv, capsys, monkeypatch):
    from sweep.report import report

    written = {}
    monkeypatch.setattr(report, "write", lambda results, out: written.update(results=results, out=out))
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    verb.run(parser.parse_args([str(csv), COLUMNS, "--bootstrap", "0"]))
    assert written["out"] == csv.parent / "runs.report"
    assert len(written["results"].finished) == 100
    assert "report.html" in capsys.readouterr().out


def test_anybodys_activations_put_alpha_beside_four_over_d(csv, tmp_path, capsys):
    np.save(tmp_path / "activations.npy", np.random.default_rng(0).uniform(size=(800, 3)))
    words = [csv, COLUMNS, "--activations", tmp_path / "activations.npy"]
    assert run(*words) == 0
    assert "beside 4/d = 1." in capsys.readouterr().out
    found = json.loads((csv.parent / "runs.fit.json").read_text())["dimension"]
    assert found["d"] == pytest.approx(3, rel=0.15)
    assert (found["N"], found["points"], found["compatible"]) == (None, 800, False)
    with pytest.raises(UserError, match="--activations: per_ratio has no exponent of N"):
        run(*words, "--form", "per_ratio")
    with pytest.raises(UserError, match=r"not a readable \.npy file"):
        run(csv, COLUMNS, "--activations", csv)


def test_predict_reads_the_table_in_the_units_of_the_fit(csv, capsys):
    frame = pd.read_csv(csv).drop(columns="C")
    frame.assign(size=frame["size"] / 1e6, D=frame["D"] / 1e9).to_csv(csv, index=False)
    run(csv, COLUMNS, "--bootstrap", "0", "--units", "N=1e6,D=1e9")
    assert main(["predict", str(csv), "--params", "1B", "--tokens", "20B"]) == 0
    assert "N = 1B, D = 20B" in capsys.readouterr().out
    larger = pd.DataFrame([{"size": 1000.0, "D": 20.0, "final": 2.5, "family": 99}])
    pd.concat([pd.read_csv(csv), larger]).to_csv(csv, index=False)
    assert main(["predict", str(csv), "--score"]) == 0
    assert "row 100: 2.5000; predicted for N = 1B, D = 20B as trained" in capsys.readouterr().out
