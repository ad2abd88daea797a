import gzip
import shutil
import zipfile

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


SMALL = "params,tokens,val_loss\n1000000,20000000,3.25\n2000000,40000000,3.0\n"


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("semicolons.csv", SMALL.replace(",", ";")),
        ("decimal_commas.csv", SMALL.replace(",", ";").replace(".", ",")),
        ("points_for_thousands.csv", "params;tokens;val_loss\n1.000.000;20.000.000;3,25\n2.000.000;40.000.000;3,0\n"),
        ("tabs.tsv", SMALL.replace(",", "\t")),
        ("tabs.csv", SMALL.replace(",", "\t")),
        ("bars.txt", SMALL.replace(",", " | ")),
        ("spaces.dat", SMALL.replace(",", "   ")),
        ("spaces_after_commas.csv", SMALL.replace(",", ", ")),
        ("names.csv", SMALL.replace("params,tokens,val_loss", " Params , TOKENS,Val Loss")),
        ("comments.csv", "# made by hand\n\n" + SMALL.replace("\n2000000", "\n# the larger\n2000000")),
        ("trailing.csv", SMALL.replace("\n", ",\n")),
        ("trailing_values.csv", SMALL.replace("3.25", "3.25,").replace("3.0", "3.0,")),
        ("bom.csv", b"\xef\xbb\xbf" + SMALL.encode()),
        ("utf16.csv", SMALL.encode("utf-16")),
        ("utf16_without_a_mark.csv", SMALL.encode("utf-16-le")),
        ("windows.csv", (SMALL + "# gr\u00f6\u00dfer\n").replace("\n", "\r\n").encode("cp1252")),
        ("packed.csv.gz", gzip.compress(SMALL.encode(), mtime=0)),
        ("people.csv", 'params,tokens,val_loss\n1M,"20,000,000",3.25\n2.0M,40M,3.0\n'),
        (
            "array.json",
            '[{"params": 1e6, "tokens": 2e7, "val_loss": 3.25}, {"params": 2e6, "tokens": 4e7, "val_loss": 3}]',
        ),
        ("columns.json", '{"params": [1e6, 2e6], "tokens": [2e7, 4e7], "val_loss": [3.25, 3]}'),
        (
            "around.json",
            '{"v": 1, "runs": [{"params": 1e6, "tokens": 2e7, "val_loss": 3.25},'
            '{"params": 2e6, "tokens": 4e7, "val_loss": 3}]}',
        ),
    ],
)
def test_the_same_table_in_every_dialect(tmp_path, name, content):
    data, _, outputs = read(str(written(tmp_path, name, content)))
    rows = prepare(data)
    assert (rows.N.tolist(), rows.D.tolist(), rows.loss.tolist()) == ([1e6, 2e6], [2e7, 4e7], [3.25, 3.0])
    assert outputs.path("fit.json").name == f"{name.split('.')[0]}.fit.json"


def test_a_hash_may_begin_the_names_of_runs(tmp_path):
    text = "# from a tracker\nrun,params,tokens,val_loss\n#1,1e6,2e7,3.25\n#2,2e6,4e7,3.0\n"
    rows = prepare(read(str(written(tmp_path, "runs.csv", text)))[0])
    assert rows.N.tolist() == [1e6, 2e6]
    assert rows.family.tolist() == ["#1", "#2"]


def test_a_zip_holds_one_table(tmp_path):
    with zipfile.ZipFile(tmp_path / "runs.zip", "w") as archive:
        archive.writestr("a.csv", SMALL)
    assert prepare(read(str(tmp_path / "runs.zip"))[0]).N.tolist() == [1e6, 2e6]
    with zipfile.ZipFile(tmp_path / "runs.zip", "a") as archive:
        archive.writestr("b.csv", SMALL)
    with pytest.raises(UserError, match="holds 2 files; give one table"):
        read(str(tmp_path / "runs.zip"))


def test_nested_records_are_columns_with_dots(tmp_path):
    line = '{"config": {"model": {"n_params": %g}}, "train/tokens": 2e7, "eval/loss, smooth": 3.2}\n'
    data = read(str(written(tmp_path, "runs.jsonl", line % 1e6 + "\n" + line % 2e6)))[0]
    columns = parse_columns("N=config.model.n_params,D=train/tokens,loss=eval/loss, smooth")
    rows = prepare(data, columns=columns, where="`eval/loss, smooth` < 4 and config.model.n_params > 1e6")
    assert rows.N.tolist() == [2e6]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short_header.csv", "N,D,loss\n1,2,3,4\n", r"line 2: 4 values under the header's 3 names \(N, D, loss\)"),
        ("short_row.csv", "# c\nN,D,loss\n1,2,3\n\n1,2\n", "line 5: 2 values under"),
        ("twice.csv", "N,D,loss,loss\n1,2,3,4\n", "two columns are called 'loss'"),
        ("bad.jsonl", '{"N": 1}\n\n{"N": \n', "bad.jsonl line 3: not JSON"),
        ("words.jsonl", '{"N": 1}\n7\n', "words.jsonl line 2: not an object"),
        ("one.json", "7", "no table"),
        ("deep.json", "[" * 100_000, "not a readable json file"),
        ("cut.csv.gz", gzip.compress(SMALL.encode(), mtime=0)[:-9], "not a readable csv file"),
        (
            "cell.jsonl",
            '{"N": 1, "D": 2, "loss": 3}\n\n{"N": "x", "D": 2, "loss": 3}\n',
            "cell.jsonl line 3, column 'N'",
        ),
        ("cell.csv.gz", gzip.compress(b"N;D;loss\n1;2;3\n# c\n1;x;3\n", mtime=0), "cell.csv.gz line 4, column 'D'"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_line(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(read(str(written(tmp_path, name, content)))[0])
    assert "\n" not in str(error.value)


def test_single_letters_are_taken_as_they_are_written():
    frame = pd.DataFrame({"n": [8.0], "d": [64.0], "Tokens": [2e7], "N-Params": [1e6], "LOSS": [3.0], "Loss ": [2.0]})
    found = find_columns(frame, {"loss": "LOSS"}, "non_embedding")
    assert found == {"N": "N-Params", "D": "Tokens", "loss": "LOSS"}
    with pytest.raises(UserError, match="no column for loss"):  # which of the two is not guessed
        find_columns(frame, {}, "non_embedding")


def test_all_of_a_large_table_is_read(tmp_path):
    frame = pd.concat([table(HOFFMANN)] * 100, ignore_index=True).assign(note="a note", seed=1)
    frame.to_csv(tmp_path / "runs.csv", sep=";", decimal=",", index=False)
    assert len(read(str(tmp_path / "runs.csv"))[0]) == 10_000
