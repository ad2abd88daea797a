import numpy as np

from benchmarks.fit_simulation import HOFFMANN, table
from sweep.fit.foreign import as_sweep
from sweep.fit.rows import prepare


def test_anybodys_table_in_a_sweeps_columns():
    frame = table(HOFFMANN).rename(columns={"loss": "final"}).assign(depth=4)
    frame.loc[3, "final"] = np.nan
    rows = prepare(frame, columns={"loss": "final"}, where="C < 9e20")
    own = as_sweep(frame, rows)
    assert own["status"].tolist().count("missing") == 1
    assert "loss is nan" in own["reason"][3]
    np.testing.assert_allclose(own["loss_nats"], frame["final"])
    np.testing.assert_allclose(own["tokens_per_param"][0], frame["D"][0] / frame["N"][0])
    assert own["depth"].tolist() == [4] * 100
    assert own["family_id"].nunique() == 20
