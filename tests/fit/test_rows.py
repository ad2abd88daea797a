import numpy as np
import pandas as pd
import pytest

from benchmarks.fit_simulation import HOFFMANN, table
from sweep.common.errors import UserError
from sweep.fit.rows import prepare


def reasons(rows):
    return {(d.row, d.reason) for d in rows.dropped}


def test_every_dropped_row_has_its_reason():
    frame = table(HOFFMANN, run_sd=0.01).assign(status="finished")
    frame.loc[0, "status"] = "diverged"
    frame.loc[1, "status"] = "missing"
    frame.loc[2, "loss"] = np.nan
    frame.loc[3, "N"] = -1
    frame.loc[4, "loss"] = np.inf
    frame.loc[6] = frame.loc[5]
    frame.loc[99, "D"] = 0
    rows = prepare(frame, where="C > 1.1e18 or family < 9")
    assert reasons(rows) >= {
        (0, "diverged"),
        (1, "unfinished"),
        (2, "not_finite"),
        (3, "not_positive"),
        (4, "diverged"),
        (6, "duplicate"),
        (99, "not_positive"),
        (50, "outside_range"),
    }
    assert len(rows.row) + len(rows.dropped) == len(frame)
    assert not set(rows.row) & {d.row for d in rows.dropped}
    assert all(d.detail and "\n" not in d.detail for d in rows.dropped)


def test_any_two_give_the_third():
    frame = table(HOFFMANN)
    full = prepare(frame)
    for left_out in "NDC":
        rows = prepare(frame.drop(columns=left_out))
        np.testing.assert_allclose(getattr(rows, left_out), getattr(full, left_out), rtol=1e-12)


def test_conventions():
    frame = table(HOFFMANN, k=10).rename(columns={"N": "params_non_embedding"})
    frame["params_total"] = frame["params_non_embedding"] * 1.5
    assert prepare(frame, n_convention="total").N[0] == frame["params_total"][0]
    exact, six = prepare(frame), prepare(frame, c_convention="6nd")
    np.testing.assert_allclose(exact.C / six.C, 10 / 6)
    with pytest.raises(UserError, match="convention"):
        prepare(frame, n_convention="active")


def test_best_of_a_learning_rate_axis():
    base = table(HOFFMANN, families=4)
    # 0.5x is best, except for the largest size, where it is the highest tried, 2x: undertuned
    parts = []
    for multiplier in (0.25, 0.5, 1.0, 2.0):
        penalty = 0.01 * np.log2(multiplier / 0.5) ** 2
        large = 0.01 * np.log2(multiplier / 4.0) ** 2
        is_large = base["N"] == base["N"].max()
        parts.append(base.assign(loss=base["loss"] + np.where(is_large, large, penalty), lr_multiplier=multiplier))
    frame = pd.concat(parts, ignore_index=True)
    rows = prepare(frame)
    assert len(rows.row) == 15
    assert set(frame["lr_multiplier"].iloc[rows.row]) == {0.5}
    counts = pd.Series([d.reason for d in rows.dropped]).value_counts()
    assert counts.to_dict() == {"worse_lr": 60, "undertuned": 5}
    assert len(prepare(frame, keep_undertuned=True).row) == 20


def test_only_the_end_of_a_decayed_curve_counts():
    frame = table(HOFFMANN, families=3, budgets=4).assign(run=lambda t: t["family"], phase="decay")
    rows = prepare(frame)
    assert len(rows.row) == 3
    assert {d.reason for d in rows.dropped} == {"mid_decay"}


def test_families_by_run_or_alone():
    frame = table(HOFFMANN).drop(columns="family")
    assert len(set(prepare(frame).family)) == len(frame)
    assert any("independent" in w for w in prepare(frame).warnings)
    runs = np.where(table(HOFFMANN)["family"] == 0, "a", "b")
    of_two = frame[table(HOFFMANN)["family"] < 2].assign(run=runs[table(HOFFMANN)["family"] < 2])
    assert len(set(prepare(of_two.reset_index(drop=True)).family)) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t.assign(loss="low"), r"row 0 of the table, column 'loss' \(loss\): 'low' is not a number"),
        (lambda t: t.assign(loss=-1.0), "no usable row among 100: 100 not_positive"),
        (lambda t: t.drop(columns="loss"), "no column for loss"),
    ],
)
def test_bad_tables(make, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(make(table(HOFFMANN)))
    assert "\n" not in str(error.value)


def test_where_knows_roles_ratios_and_empty_cells():
    frame = table(HOFFMANN).rename(columns={"N": "size", "loss": "final"}).drop(columns="C")
    frame["note"] = [None, "bad"] * 50
    columns = {"N": "size", "loss": "final"}
    full = prepare(frame, columns=columns)
    rows = prepare(frame, columns=columns, where="tokens_per_param > 5 and C < 9e20 and N > 0 and loss < 1e3")
    assert rows.row.tolist() == np.flatnonzero((full.D / full.N > 5) & (full.C < 9e20)).tolist()
    assert 0 < len(rows.row) < 100
    rows = prepare(frame, columns=columns, where='note != "bad"')
    assert rows.row.tolist() == list(range(0, 100, 2))
    assert rows.dropped[0].shown == """outside_range (--where 'note != "bad"')"""
    own = prepare(frame.assign(loss=1.0), columns=columns, where="loss == 1")  # a column of the table goes first
    assert len(own.row) == 100


def test_what_is_derived_is_said():
    for left_out in "NDC":
        said = [w for w in prepare(table(HOFFMANN).drop(columns=left_out)).warnings if "6 N D" in w]
        assert said == [f"no column for {left_out}: C = 6 N D was assumed"]
    assert not any("6 N D" in w for w in prepare(table(HOFFMANN)).warnings)


def test_weights_come_from_a_column():
    frame = table(HOFFMANN).assign(weight=2.0)
    frame.loc[4, "weight"] = 0.0
    rows = prepare(frame)
    assert set(rows.weight) == {2.0}
    assert reasons(rows) == {(4, "not_positive")}
    assert set(prepare(table(HOFFMANN)).weight) == {1.0}


def test_columns_in_different_units_are_warned_about():
    frame = table(HOFFMANN)
    (warning,) = prepare(frame.assign(N=frame["N"] / 1e6)).warnings
    assert warning.startswith("C is 1e+06 times 6 N D: the columns N (N), D (D), C (C) are in different units")
    for ratio in (0.1, 5.4, 20.0):  # a mixture of experts, our smallest model, a smaller one
        assert prepare(frame.assign(C=ratio * frame["C"])).warnings == []


@pytest.mark.parametrize(
    "word",
    [
        "INTERRUPTED",
        "TIMEOUT",
        "OUT_OF_MEMORY",
        "CANCELLED by 1000",
        "CANCELLED+",
        "NODE_FAIL",
        "crashed",
        "RUNNING",
        "preempted",
        "KILLED",
        "SCHEDULED",
        "out-of-memory",
        " Failed ",
        "QUEUED",
    ],
)
def test_what_other_schedulers_and_trackers_call_unfinished(word):
    frame = table(HOFFMANN).assign(Status=["COMPLETED"] * 99 + [word])
    assert reasons(prepare(frame)) == {(99, "unfinished")}


def test_a_word_that_nobody_knows_is_named_and_not_fitted():
    frame = table(HOFFMANN).assign(state=["Finished", "success", None, "done"] * 24 + ["done", "odd", "odd", "blue"])
    rows = prepare(frame)
    assert reasons(rows) == {(97, "unknown_status"), (98, "unknown_status"), (99, "unknown_status")}
    said = [w for w in rows.warnings if "not fitted" in w]
    assert [w.split(",")[0] for w in said] == ["status is 'odd' in 2 rows", "status is 'blue' in 1 row"]
    with pytest.raises(UserError, match="no usable row among 100: status is 'odd' in 100 rows"):
        prepare(frame.assign(state="odd"))


def test_of_several_evaluations_of_a_run_the_last_is_fitted():
    frame = table(HOFFMANN, families=3, budgets=4).assign(run=lambda t: "r" + t["family"].astype(str))
    shuffled = frame.sample(frac=1, random_state=0, ignore_index=True)
    rows = prepare(shuffled)
    assert sorted(rows.D) == sorted(frame.groupby("run")["D"].max())
    assert {d.reason for d in rows.dropped} == {"mid_run"}
    assert "9 rows are earlier evaluations of a run: only the last of each run is fitted" in rows.warnings


def test_a_run_that_ended_badly_has_no_last_evaluation():
    frame = table(HOFFMANN, families=3, budgets=4).assign(run=lambda t: t["family"], status="finished")
    ends = frame.groupby("run")["D"].idxmax()
    frame.loc[ends[0], "loss"] = np.inf
    frame.loc[ends[1], "status"] = "TIMEOUT"
    frame.loc[ends[2], "loss"] = np.nan  # no evaluation there: the one before is the last
    rows = prepare(frame)
    assert rows.D.tolist() == [frame[frame["run"] == 2]["D"].nlargest(2).iloc[1]]


def test_a_run_of_two_sizes_is_none():
    frame = table(HOFFMANN).assign(run=["a", "b"] * 50)
    with pytest.raises(
        UserError, match=r"the run 'a' of column 'run' has rows of N = .* --columns run=COLUMN"
    ) as error:
        prepare(frame)
    assert "\n" not in str(error.value)


def test_a_run_with_two_losses_at_the_same_tokens_is_warned_about():
    frame = table(HOFFMANN, families=3, budgets=1).assign(run=["a", "b", "c"])
    again = frame.iloc[[1]].assign(loss=9.0)
    rows = prepare(pd.concat([frame, again, frame.iloc[[0]]], ignore_index=True))
    assert reasons(rows) == {(3, "duplicate"), (4, "duplicate")}
    (said,) = [w for w in rows.warnings if "second loss" in w]
    assert said.startswith("1 row gives a run a second loss at the same tokens (run b: ")
    assert said.endswith("then 9): the first is fitted")
