import json
from dataclasses import MISSING, asdict, fields

import pytest

from sweep.common.errors import UserError
from sweep.runs.record import Record

RECORD = Record(
    trial_id="t",
    family_id="f",
    status="finished",
    params={"embedding": 10},
    params_non_embedding=5,
    params_total=15,
    tokens=100,
    flops=3e6,
    flops_per_token=3e4,
    steps_done=10,
    loss_nats=2.5,
    best_loss_nats=2.25,
    best_tokens=90,
    train_loss_nats=2.125,
    bits_per_byte=None,
    shared_steps=8,
    wall_seconds=1.5,
    own_seconds=0.5,
    tokens_per_second=1000.0,
    device="cpu",
    execution_class="c",
    execution_classes=["c"],
    code_hash="h",
    finished_at=1.0,
)


def test_the_first_record_stays(tmp_path):
    path = tmp_path / "record.json"
    assert RECORD.publish(path)
    other = Record(**{**asdict(RECORD), "loss_nats": 9.0})
    assert not other.publish(path)
    assert Record.read(path) == RECORD


def test_another_schema_version_is_refused(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**asdict(RECORD), "schema_version": 99}))
    with pytest.raises(UserError, match=r"record\.json: schema version 99, this code reads 1"):
        Record.read(path)
    path.write_text(json.dumps({key: value for key, value in asdict(RECORD).items() if key != "schema_version"}))
    with pytest.raises(UserError, match="schema version None"):
        Record.read(path)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"record\.json: damaged \(input should be an object"):
        Record.read(path)


@pytest.mark.parametrize("name", [f.name for f in fields(Record) if f.default is MISSING])
def test_a_record_that_lacks_a_field_is_damaged(tmp_path, name):
    path = tmp_path / "record.json"
    value = asdict(RECORD)
    del value[name]
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=rf"damaged \({name} is missing\); delete it to train the trial again"):
        Record.read(path)


def test_a_record_from_before_there_were_dimensions_is_whole(tmp_path):
    path = tmp_path / "record.json"
    value = asdict(RECORD)
    del value["intrinsic_dimension"], value["dimension_points"]
    path.write_text(json.dumps(value))
    assert Record.read(path) == RECORD


def test_what_a_newer_code_adds_is_ignored(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**asdict(RECORD), "colour": "blue"}))
    assert Record.read(path) == RECORD


@pytest.mark.parametrize(
    ("name", "value"), [("loss_nats", "2.5"), ("status", "fine"), ("tokens", None), ("trial_id", 3)]
)
def test_a_value_of_another_kind_is_damage(tmp_path, name, value):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**asdict(RECORD), name: value}))
    with pytest.raises(
        UserError, match=rf"damaged \({name}=.*: input should be .*; delete it to train the trial again"
    ):
        Record.read(path)
