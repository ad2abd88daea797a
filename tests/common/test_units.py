import math

import pytest

from sweep.common.errors import UserError
from sweep.common.units import duration, format_bytes, parse_count, parse_duration, parse_quantity, scientific, short


@pytest.mark.parametrize(
    ("written", "number"),
    [
        (1000, 1000),
        (2.5, 2.5),
        ("500k", 500_000),
        ("1M", 1e6),
        ("2.5m", 2.5e6),
        ("3B", 3e9),
        ("3G", 3e9),
        ("1T", 1e12),
        ("3e15", 3e15),
        ("1e-3", 1e-3),
        ("1_000_000", 1e6),
        (" 12 ", 12),
    ],
)
def test_quantities_as_people_write_them(written, number):
    assert parse_quantity("budget.tokens", written) == pytest.approx(number, rel=1e-15)


@pytest.mark.parametrize(
    "written", ["", "M", "1MM", "1 M", "-1M", "0", 0, -3, "1e400", "nan", "inf", True, None, [1], "0x10"]
)
def test_what_is_no_positive_number_is_refused_with_key_and_value(written):
    with pytest.raises(UserError, match="not a positive number") as caught:
        parse_quantity("budget.tokens", written)
    assert str(caught.value).startswith(f"budget.tokens={written}")


def test_counts_are_whole():
    assert parse_count("model.params", "1.5k") == 1500
    assert parse_count("model.params", 12.4) == 12


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (3, "3"),
        (999, "999"),
        (999.6, "1k"),
        (3088, "3.09k"),
        (1.05e6, "1.05M"),
        (2e9, "2B"),
        (1e12, "1T"),
        (0.5, "0.5"),
    ],
)
def test_short_reads_back(number, text):
    assert short(number) == text
    assert parse_quantity("n", text) == pytest.approx(number, rel=0.005)


def test_flops_and_bytes():
    assert [scientific(x) for x in (1e11, 3.16e15, 2.7e12)] == ["1e11", "3.16e15", "2.7e12"]
    assert [format_bytes(x) for x in (12, 2048, 3 * 2**20, 5 * 2**30)] == ["12 B", "2.0 KiB", "3.0 MiB", "5.0 GiB"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (60, "1 m 00 s"),
        (185, "3 m 05 s"),
        (7800, "2 h 10 m"),
        (3 * 86400 + 7200, "3 d 2 h"),
        (math.inf, "?"),
        (math.nan, "?"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_no_duration_shows_sixty_seconds_or_minutes():
    """Rounding must carry into the next unit."""
    for seconds in (59.5, 59.7, 59.96, 3599.6, 172799.7):
        text = duration(seconds)
        assert "60 s" not in text
        assert "60 m" not in text


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d12h", 129600)])
def test_times_are_read_with_their_units(text, seconds):
    assert parse_duration("key", text) == seconds


@pytest.mark.parametrize("text", ["30", 30, "", "0m", "2 h", "h", "1.5h", "-1h", "30m2h"])
def test_times_without_units_are_refused_with_key_and_value(text):
    with pytest.raises(UserError, match=f"key={text}: not a time"):
        parse_duration("key", text)
