import shutil

import pandas as pd
import pytest

from benchmarks.fit_simulation import HOFFMANN, table
from sweep.common.errors import UserError
from sweep.fit.rows import prepare
from sweep.fit.table import find_columns, parse_columns, read


def test_columns_by_name_and_by_request():
    frame = pd.DataFrame({"tokens": [1.0], "params_non_embedding": [2.0], "N": [3.0], "my loss": [4.0]})
    assert find_columns(frame, {"loss": "my loss"}, "non_embedding")["N"] == "params_non_embedding"
    assert find_columns(frame, parse_columns("loss=my loss, N=N"), "non_embedding")["N"] == "N"
    with pytest.raises(UserError, match=r"no column for loss.*tokens, params_non_embedding, N, my loss"):
        find_columns(frame, {}, "non_embedding")
    with pytest.raises(UserError, match=r"val.*there is tokens"):
        find_columns(frame, {"loss": "val"}, "non_embedding")
    with pytest.raises(UserError, match="two of N, D, C"):
        find_columns(frame[["tokens", "my loss"]], {"loss": "my loss"}, "non_embedding")
    with pytest.raises(UserError, match="ROLE=COLUMN"):
        parse_columns("size=N")


def test_fingerprint_sees_the_data_and_not_the_rest(tmp_path):
    frame = table(HOFFMANN)
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.assign(colour="red").to_parquet(tmp_path / "t.parquet")
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True, double_precision=15)
    prints = [prepare(read(str(tmp_path / name))[0]).data_sha256 for name in ("t.csv", "t.parquet")]
    assert prints[0] == prints[1]
    assert len(read(str(tmp_path / "t.jsonl"))[0]) == len(frame)
    frame.loc[7, "loss"] *= 1.0001
    assert prepare(frame).data_sha256 != prints[0]


def test_a_bad_cell_is_named_by_its_line(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text('N,D,loss,note\n1e6,1e8,3.0,"two\nlines"\n\n1e6,2e8,2.9,\n1e6,abc,2.8,\n')
    assert path.read_text().splitlines()[5].startswith("1e6,abc")
    with pytest.raises(UserError, match=r"^runs.csv line 6, column 'D' \(D\): 'abc' is not a number; correct it, or"):
        prepare(read(str(path))[0])


def test_a_damaged_sweep_says_how_to_make_its_table_again(tmp_path):
    (tmp_path / "mine").mkdir()
    table(HOFFMANN).to_parquet(tmp_path / "mine" / "table.parquet")
    data, curves, home = read("mine", tmp_path)
    assert (len(data), curves, home.path("fit.json")) == (100, None, tmp_path / "mine" / "fit.json")
    shutil.copytree(tmp_path / "mine", tmp_path / "v1.5")
    for name in ("v1.5", str(tmp_path / "v1.5")):
        assert len(read(name, tmp_path)[0]) == 100
    for name in ("curves.parquet", "table.parquet"):
        (tmp_path / "mine" / name).write_bytes(b"PAR1 and then nothing")
        with pytest.raises(UserError, match=rf"{name}: damaged .*; delete it and run `python -m sweep collect mine`$"):
            read("mine", tmp_path)


def test_bad_files(tmp_path):
    (tmp_path / "t.parquet").write_text("not parquet")
    (tmp_path / "t.xlsx").write_text("")
    (tmp_path / "empty.csv").write_text("")
    for name in ("t.parquet", "t.xlsx", "empty.csv", "absent.csv", "no_such_sweep"):
        with pytest.raises(UserError) as error:
            read(str(tmp_path / name) if "." in name else name, tmp_path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="run `python -m sweep collect gone` first, or give a file"):
        read("gone", tmp_path)
    with pytest.raises(UserError, match="empty"):
        prepare(table(HOFFMANN), where=" ")
