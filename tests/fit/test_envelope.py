import numpy as np
import pandas as pd
import pytest

from benchmarks.fit_simulation import BESIROGLU
from sweep.common.errors import UserError
from sweep.fit import envelope
from sweep.fit.laws import law_named

ADDITIVE = law_named("additive")


def curves(phase="stable"):
    rows = []
    for i, N in enumerate(np.geomspace(1e7, 3e9, 15)):
        D = np.geomspace(1e7, 1e12, 60)
        loss = ADDITIVE.loss(BESIROGLU, {"N": N, "D": D}) * 1.03
        flops = 6 * N * D
        for budget in (1, 2):
            part = pd.DataFrame({"tokens": D, "flops": flops, "val_loss_nats": loss, "lr": 1e-3, "phase": phase})
            rows.append(part.assign(trial_id=f"{i}-{budget}", family_id=f"f{i}", size=N))
    return pd.concat(rows, ignore_index=True)


def sizes_of(frame):
    return dict(zip(frame["family_id"], frame["size"], strict=True))


def test_envelope_of_exact_curves():
    frame = curves()
    stable = envelope.stable_curves(frame, sizes_of(frame))
    assert stable.log_loss_FG.shape == (15, 200)  # one curve per family, though each has two runs
    found = envelope.envelope(stable)
    assert found.a == pytest.approx(0.5126, abs=0.005)
    assert found.b == pytest.approx(0.4874, abs=0.005)
    assert "undecayed" in found.note


def test_decayed_points_never_enter_the_envelope():
    frame = curves()
    decayed = frame.assign(phase="decay", val_loss_nats=0.01, lr=1e-5)
    warm = frame.assign(lr=1e-4, val_loss_nats=0.01, tokens=frame["tokens"] / 7)
    both = pd.concat([frame, decayed, warm], ignore_index=True)
    clean = envelope.envelope(envelope.stable_curves(frame, sizes_of(frame)))
    assert envelope.envelope(envelope.stable_curves(both, sizes_of(frame))) == clean


def test_cosine_has_no_envelope():
    frame = curves(phase="decay")
    with pytest.raises(UserError, match="constant learning rate"):
        envelope.stable_curves(frame, sizes_of(frame))


def test_envelope_of_too_few_sizes_is_refused():
    frame = curves()
    three = frame[frame["family_id"].isin(["f6", "f7", "f8"])]
    assert envelope.envelope(envelope.stable_curves(three, sizes_of(frame))).refused
