"""What a model is asked between steps: its loss on the validation text and on what it was trained on, and a sample.

Shapes: N windows of T+1 tokens; T tokens of a sample.
"""

import numpy as np
import torch

from sweep.common.files import append_json
from sweep.train.curve import Curve
from sweep.train.setup import Setup

PROMPT_TOKENS = 16


@torch.no_grad()
def evaluate(setup: Setup, windows_NT: np.ndarray) -> float:
    """Mean nats per token over windows of T+1 tokens, N of them."""
    setup.model.eval()
    total = torch.zeros((), dtype=torch.float64, device=setup.device)  # read once: each reading waits for the device
    for start in range(0, len(windows_NT), setup.micro_batch):
        chunk = windows_NT[start : start + setup.micro_batch].astype(np.int64)
        total += len(chunk) * setup.loss_of(chunk[:, :-1], chunk[:, 1:]).double()
    setup.model.train()
    return total.item() / len(windows_NT)


def train_loss(setup: Setup, steps: int) -> float:
    """Mean nats per token on the sequences that training saw first, as many as the validation set has."""
    count = min(setup.config.eval.sequences, steps * setup.config.batch_sequences)
    pairs = [setup.batches.batch(i) for i in range(-(-count // setup.config.batch_sequences))]
    inputs_NT = np.concatenate([inputs for inputs, _ in pairs])[:count]
    targets_NT = np.concatenate([targets for _, targets in pairs])[:count]
    return evaluate(setup, np.concatenate([inputs_NT, targets_NT[:, -1:]], axis=1))


def write_sample(curve: Curve) -> None:
    """Have the model go on with the beginning of the validation text; the same text for the same seed and step."""
    setup, step = curve.setup, curve.state.step
    curve.fetch()
    prompt_T = torch.from_numpy(setup.validation_NT[0, :PROMPT_TOKENS].astype(np.int64)).to(setup.device)
    generator = torch.Generator(setup.device).manual_seed(setup.config.seed * 1_000_003 + step)
    setup.model.eval()
    with torch.no_grad(), setup.autocast():
        ids_T = setup.model.generate(prompt_T, setup.config.eval.sample_tokens, generator)
    setup.model.train()
    prompt, text = (setup.tokens.decode(ids.tolist()) for ids in (prompt_T, ids_T))
    tokens = step * setup.config.batch_tokens
    append_json(curve.samples, {"step": step, "tokens": tokens, "prompt": prompt, "text": text})
