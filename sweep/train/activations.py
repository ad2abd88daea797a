"""The final layer's activations on the validation text, and their intrinsic dimension (`train/intrinsic_dimension.py`).

Shapes: B sequences, T tokens, C width; P points.
"""

import numpy as np
import torch

from sweep.common.errors import UserError
from sweep.train.intrinsic_dimension import Dimension, intrinsic_dimension
from sweep.train.setup import Setup

POINTS = 1000  # an interval of 5% on either side, in a few hundredths of a second


def dimension_of(setup: Setup) -> Dimension | None:
    """Of the model as it is now, the same whatever the micro-batch but for rounding. None where the validation set
    gives too few distinct points."""
    try:
        return intrinsic_dimension(final_layer(setup, POINTS))
    except UserError:
        return None


@torch.no_grad()
def final_layer(setup: Setup, points: int) -> np.ndarray:
    """What the head reads at `points` evenly spaced positions of the validation set (at all, if it has fewer):
    x_PC, fp32."""
    inputs_NT = setup.validation_NT[:, :-1].astype(np.int64)
    points = min(points, inputs_NT.size)
    sequence_P, position_P = np.divmod(np.arange(points) * inputs_NT.size // points, inputs_NT.shape[1])
    needed = np.unique(sequence_P)
    found = []
    setup.model.eval()
    for chunk in np.array_split(needed, -(-len(needed) // setup.micro_batch)):
        inputs_BT = torch.from_numpy(inputs_NT[chunk]).to(setup.device)
        with setup.autocast():
            x_BTC = setup.model.features(inputs_BT, setup.documents(inputs_BT))
        here_P = np.isin(sequence_P, chunk)
        rows_P = np.searchsorted(chunk, sequence_P[here_P])
        found.append(x_BTC[rows_P, position_P[here_P]].float().cpu().numpy())
    setup.model.train()
    return np.concatenate(found)
