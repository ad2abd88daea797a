"""What is read from a file is of its type, or one line says which field of which file is not."""

import json
from dataclasses import dataclass, field

import pytest

from sweep.common import artefacts
from sweep.common.errors import UserError


@dataclass(frozen=True)
class Inner:
    steps: int
    seconds: float | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    rows: list[Inner] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("name='': must be a name")


def test_a_value_is_typed_and_what_came_later_may_be_missing(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"name": "x", "inner": {"steps": 3, "of the future": 1}, "rows": [{"steps": 1}]}))
    assert artefacts.read(Outer, path) == Outer("x", Inner(3), [Inner(1)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"name": "x"}', "a.json: damaged (inner is missing); restore it"),
        ('{"name": "x", "inner": {"steps": "3"}}', "damaged (inner.steps='3': input should be a valid integer)"),
        ('{"name": "x", "inner": {"steps": true}}', "inner.steps=True"),
        ('{"name": "x", "inner": {"steps": 1}, "rows": [{"steps": 1}, {"steps": 1.5}]}', "rows.1.steps=1.5"),
        ('{"name": "", "inner": {"steps": 1}}', "name='': must be a name"),
        ('{"name": "x", ', "a.json: damaged (invalid JSON"),
        ("[" * 5000, "a.json: damaged (invalid JSON: recursion limit"),
        ("[]", "a.json: damaged (input should be"),
        ("\udcff", "a.json: damaged (invalid JSON"),
    ],
)
def test_what_is_damaged_is_one_line_with_file_and_field(tmp_path, text, said):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError) as error:
        artefacts.read(Outer, path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"a\.json: no such file"):
        artefacts.read(Outer, tmp_path / "a.json")
    assert artefacts.read_lines(Outer, tmp_path / "a.json") == []


def test_of_lines_the_last_may_be_half_written_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"steps": 1}\n{"steps": 2}\n{"ste')
    assert artefacts.read_lines(Inner, path) == [Inner(1), Inner(2)]
    path.write_text('{"steps": 1}\n{"steps": null}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: damaged \(steps=None: .*\); restore the file, or remove it"):
        artefacts.read_lines(Inner, path)


def test_numbers_that_json_has_no_word_for_are_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"steps": 1, "seconds": NaN}')
    assert artefacts.read(Inner, path).seconds != artefacts.read(Inner, path).seconds
