import numpy as np
import pytest

from benchmarks.fit_simulation import HOFFMANN, table
from sweep.common.errors import UserError
from sweep.fit import table_units
from sweep.fit.rows import prepare


@pytest.mark.parametrize(
    ("factors", "option"),
    [
        ({"N": 1e6, "D": 1e9}, "N=1e6,D=1e9"),
        ({"N": 1e6, "D": 1e6}, "N=1e6,D=1e6"),
        ({"N": 1e9, "D": 1e9}, "N=1e9,D=1e9"),
        ({"N": 1e6}, "N=1e6"),
        ({"D": 1e9}, "D=1e9"),
        ({"C": 1e9}, "C=1e9"),
        ({"C": 8.64e19}, "C=8.64e19"),
    ],
)
def test_other_units_are_noticed_and_the_offered_option_mends_them(factors, option):
    plain = table(HOFFMANN)
    frame = plain.assign(**{role: plain[role] / factor for role, factor in factors.items()})
    if "C" not in factors:
        frame = frame.drop(columns="C")
    doubts = [w for w in prepare(frame).warnings if "units" in w]
    assert len(doubts) == 1
    assert f"or --units {option}" in doubts[0]
    rows = prepare(frame, units=table_units.parse(option))
    assert not [w for w in rows.warnings if "units" in w]
    np.testing.assert_allclose(rows.N, plain["N"])
    np.testing.assert_allclose(rows.D, plain["D"])
    np.testing.assert_allclose(rows.C, plain["C"])


def test_steps_for_tokens_are_noticed():
    frame = table(HOFFMANN)
    (doubt,) = prepare(frame.assign(D=frame["D"] / 2**21)).warnings
    assert "D=TOKENS_PER_STEP, if these are steps" in doubt


def test_losses_in_other_units():
    plain = table(HOFFMANN)
    frame = plain.assign(loss=np.exp(plain["loss"]) * 3)
    (doubt,) = prepare(frame).warnings
    assert doubt.endswith("if it is a perplexity, --units loss=perplexity")
    for unit, loss in {
        "perplexity": np.exp(plain["loss"]),
        "bits": plain["loss"] / np.log(2),
        "nats": plain["loss"],
    }.items():
        np.testing.assert_allclose(prepare(plain.assign(loss=loss), units={"loss": unit}).loss, plain["loss"])
    for rows in (
        prepare(plain.rename(columns={"loss": "val_bpb"}), columns={"loss": "val_bpb"}),
        prepare(plain, units={"loss": "bits_per_byte"}),
    ):
        np.testing.assert_array_equal(rows.loss, plain["loss"])
        assert "is in bits per byte" in rows.warnings[0]


def test_the_units_are_kept_with_the_conventions():
    assert prepare(table(HOFFMANN), units={"C": "2"}).convention.units == {"C": "2"}


@pytest.mark.parametrize("text", ["N", "N=", "size=1e6", "loss=percent"])
def test_bad_units(text):
    with pytest.raises(UserError, match=r"--units .*: write N, D or C=FACTOR") as error:
        table_units.parse(text)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--units D=-1: not a positive number"):
        table_units.parse("D=-1")
