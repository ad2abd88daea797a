import argparse
import json
from dataclasses import asdict

import pandas as pd
import pytest

from benchmarks.fit_simulation import BESIROGLU, table
from sweep.common.errors import UserError
from sweep.fit.fit import fit_rows
from sweep.fit.laws import law_named
from sweep.fit.predictions import Allocation, allocation, load, make, score
from sweep.fit.rows import prepare
from sweep.verbs import fit as fit_verb
from sweep.verbs import predict as verb


@pytest.fixture(scope="module")
def rows():
    return prepare(table(BESIROGLU, family_sd=0.002, run_sd=0.002))


@pytest.fixture(scope="module")
def fitted(rows):
    return fit_rows(rows, bootstrap=200)


def test_allocation_from_any_two(fitted):
    best = allocation(fitted, None, None, 1e22)
    assert pytest.approx(fitted.law.optimal(1e22).N) == best.N
    for given in (("N", "D"), ("N", "C"), ("D", "C")):
        asked = [vars(best)[name] if name in given else None for name in ("N", "D", "C")]
        assert vars(allocation(fitted, *asked)) == pytest.approx(vars(best))
    with pytest.raises(UserError, match="--flops"):
        allocation(fitted, 1e9, None, None)


def test_a_prediction_carries_its_date_data_and_interval(fitted, rows):
    made = make(fitted, rows, allocation(fitted, None, None, 1e22), "command")
    assert made.data_sha256 == rows.data_sha256
    assert made.made.endswith("+00:00")
    assert made.interval.low < made.loss_nats < made.interval.high
    assert made.times_largest_run == pytest.approx(10)


def test_what_is_known_is_not_predicted(fitted, rows):
    known = Allocation(rows.N[3], rows.D[3] * 1.001, rows.C[3])
    with pytest.raises(UserError, match="row 3 of the table is this run"):
        make(fitted, rows, known, "")
    changed = prepare(table(BESIROGLU, run_sd=0.01))
    with pytest.raises(UserError, match="fit again"):
        make(fitted, changed, Allocation(1e9, 1e12, 6e21), "")


def test_score(fitted, rows):
    wanted = allocation(fitted, None, None, 1e22)
    made = make(fitted, rows, wanted, "")
    assert score(made, rows) == []
    true = float(law_named("additive").loss(BESIROGLU, vars(wanted)))
    new = {"N": wanted.N * 1.003, "D": wanted.D * 0.998, "C": wanted.C, "loss": true, "family": 99}
    later = prepare(pd.concat([table(BESIROGLU, run_sd=0.002), pd.DataFrame([new])], ignore_index=True))
    (entry,) = score(made, later)
    assert entry.row == 100
    assert entry.inside is True
    assert abs(entry.error) < 0.01


def test_a_run_of_the_same_size_and_flops_is_scored_at_the_tokens_that_it_saw(fitted, rows):
    """A fit's power law for FLOPs and the exact count of them make other tokens of the same compute."""
    made = make(fitted, rows, allocation(fitted, None, None, 1e22), "")
    more = {"N": made.N, "D": 1.2 * made.D, "C": made.C, "family": 99}
    more["loss"] = float(fitted.law.loss(more["N"], more["D"]))
    later = prepare(pd.concat([table(BESIROGLU, run_sd=0.002), pd.DataFrame([more])], ignore_index=True))
    (entry,) = score(made, later)
    assert pytest.approx(1.2 * made.D) == entry.D
    assert entry.error == pytest.approx(0, abs=1e-12)
    assert entry.inside is True


def test_a_prediction_of_version_0_1_is_read(fitted, rows, tmp_path):
    made = make(fitted, rows, allocation(fitted, None, None, 1e22), "command")
    older = asdict(made)
    older["times_dearest_run"] = older.pop("times_largest_run")
    (tmp_path / "one.json").write_text(json.dumps(older))
    ((_, found),) = load(tmp_path)
    assert found == made


def run(module, *words):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.run(parser.parse_args([str(w) for w in words]))


@pytest.mark.slow
def test_predict_train_score(tmp_path, capsys):
    frame, path = table(BESIROGLU, family_sd=0.002, run_sd=0.002), tmp_path / "runs.csv"
    frame.to_csv(path, index=False)
    with pytest.raises(UserError, match=rf"runs.fit.json: no fit yet; make it with `python -m sweep fit {path}`"):
        run(verb, path, "--flops", "1e22")
    run(fit_verb, path, "--bootstrap", "100")
    with pytest.raises(UserError, match="no prediction yet"):
        run(verb, path, "--score")
    run(verb, path, "--params", "4B", "--tokens", "4e11")
    with pytest.raises(UserError, match="never overwritten"):
        run(verb, path, "--params", "4B", "--tokens", "4e11")
    (file,) = (tmp_path / "runs.predictions").iterdir()
    assert json.loads(file.read_text())["N"] == 4e9
    run(verb, path, "--score")
    assert "not trained yet" in capsys.readouterr().out
    loss = float(law_named("additive").loss(BESIROGLU, {"N": 4e9, "D": 4e11}))
    trained = {"N": 4e9, "D": 4e11, "C": 6 * 4e9 * 4e11, "loss": loss, "family": 99}
    pd.concat([frame, pd.DataFrame([trained])]).to_csv(path, index=False)
    run(verb, path, "--score")
    assert "inside the interval" in capsys.readouterr().out


def test_bad_quantity_is_one_line(tmp_path):
    path = tmp_path / "runs.csv"
    table(BESIROGLU, run_sd=0.002).to_csv(path, index=False)
    run(fit_verb, path, "--bootstrap", "0")
    with pytest.raises(UserError, match="--flops=much"):
        run(verb, path, "--flops", "much")
