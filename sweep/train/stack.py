"""Several curves of one shape trained as one program: the tensors, and one step of all of them.

The weights of K slots lie in one matrix, a row a slot, and so do both of AdamW's moments: clipping and the optimizer
are a dozen operations on (K, P) whatever the number of parameters, and everything that differs between trials (learning
rate, betas, weight decay, clip norm) is a column of factors. A slot's row starts on a cache line, so that where a curve
sits cannot change its bits; what it computes does not depend on its neighbours either.

Slots are a fixed number with a queue of curves before them (`StackScheduler`), not one shape for each number
of curves that happen to be left: a captured CUDA graph has one shape, and cuBLAS may choose another kernel, so other
bits, for another number of rows. There an idle slot is computed with a learning rate of zero. On the CPU, where bits
were found not to depend on the number of rows, curves stay in the first slots and no others are computed.

Between steps a slot is an ordinary `State`: `read` puts it into the one plain model that all curves of a stack share
(validation, samples, records and checkpoints come from there), `seat` takes it from there.

Shape suffixes: K slots, P parameters of one model, F factors, B sequences, T tokens of a sequence.
"""

import numpy as np
import torch
from torch import Tensor

from models.gpt import GPT, parameter_groups
from models.stacked import StackedGPT
from sweep.train.cuda_graph import captured, gather, resident
from sweep.train.curve import Curve
from sweep.train.setup import Setup

CACHE_LINE = 64  # elements: a multiple of 64 bytes in every type
IDLE = (0.0, 0.1, 0.1, 1.0, 0.0, 1.0, 1.0)  # factors that leave weights as they are


class Stack:
    """K slots on one device. `setup` is any of the trials'; its model becomes the one that `read` fills."""

    def __init__(self, setup: Setup, slots: int, graph: bool = False) -> None:
        config, device = setup.config, setup.device
        self.setup, self.slots = setup, slots
        self.scratch_model: GPT = setup.model
        self.fixed = device == "cuda"  # every slot is computed, seated or not
        self.spans, self.decayed = _spans(self.scratch_model)
        size = sum(p.numel() for p in self.scratch_model.parameters())
        self.weights_KP, self.mean_KP, self.square_KP = (_rows(slots, size, device) for _ in range(3))
        self.loss_sum_K = torch.zeros(slots, device=device)
        self.grad_norm_K = torch.zeros(slots, device=device)
        self.factors_FK = torch.tensor(IDLE, device=device)[:, None].repeat(1, slots)
        self.windows_KB = torch.zeros(slots, config.batch_sequences, dtype=torch.int64, device=device)
        self.model = StackedGPT(config.model, setup.backend, device)
        self.losses, self.apply = self.model.losses, self._apply
        if setup.options.compile:  # for these shapes alone: a second number of slots must not make it general, and slow
            self.losses = torch.compile(self.losses, dynamic=False, fullgraph=True)
            self.apply = torch.compile(self.apply, dynamic=False, fullgraph=True)
        self.train_tokens = resident(setup.tokens.train, device)
        self.seated: list[Curve | None] = [None] * slots
        self.computed = 0
        self._compute(slots)
        self.step = captured(self._step) if graph else self._step

    # ---- curves in and out ----

    def free(self) -> int:
        """How many slots are free."""
        return self.seated.count(None)

    def occupied(self) -> int:
        """How many curves are trained together."""
        return self.slots - self.free()

    def slot(self, curve: Curve) -> int:
        """The slot that a curve has."""
        return next(slot for slot, one in enumerate(self.seated) if one is curve)

    def seat(self, curve: Curve) -> None:
        """Give a curve a slot, its state taken from its model and its optimizer."""
        slot = self.seated.index(None)
        self.seated[slot], curve.stack = curve, self
        state = curve.state
        for name, parameter in state.model.named_parameters():
            moments = state.optimizer.state.get(parameter, {})
            self._at(self.weights_KP, slot, name).copy_(parameter.detach().flatten())
            for rows_KP, key in ((self.mean_KP, "exp_avg"), (self.square_KP, "exp_avg_sq")):
                place = self._at(rows_KP, slot, name)
                place.copy_(moments[key].flatten()) if moments else place.zero_()
        self.loss_sum_K[slot] = state.loss_sum
        state.loss_sum = self.loss_sum_K[slot]
        state.optimizer.state.clear()

    @torch.no_grad()
    def read(self, curve: Curve, moments: bool = False) -> None:
        """Put a curve's weights into its model, and where asked its moments into its optimizer."""
        slot, state = self.slot(curve), curve.state
        for name, parameter in state.model.named_parameters():
            parameter.copy_(self._at(self.weights_KP, slot, name).view_as(parameter))
            if moments:
                state.optimizer.state[parameter] = {
                    "step": torch.tensor(float(state.step)),
                    "exp_avg": self._at(self.mean_KP, slot, name).view_as(parameter).clone(),
                    "exp_avg_sq": self._at(self.square_KP, slot, name).view_as(parameter).clone(),
                }

    def leave(self, curve: Curve) -> None:
        """Free a curve's slot; on the CPU the last curve moves into it."""
        slot = self.slot(curve)
        self.seated[slot] = curve.stack = None
        self.factors_FK[:, slot] = torch.tensor(IDLE, device=self.setup.device)
        last = max((k for k, one in enumerate(self.seated) if one is not None), default=-1)
        if not self.fixed and last > slot and (moved := self.seated[last]) is not None:
            for rows in (self.weights_KP, self.mean_KP, self.square_KP, self.loss_sum_K):
                rows[slot] = rows[last]
            moved.state.loss_sum = self.loss_sum_K[slot]
            self.seated[slot], self.seated[last] = moved, None

    # ---- one step ----

    def update(self) -> dict[int, tuple[float, Tensor]]:
        """One optimizer step of every seated curve. By slot: learning rate, and gradient norm before clipping."""
        seated = [(slot, curve) for slot, curve in enumerate(self.seated) if curve is not None]
        if not self.fixed:
            self._compute(len(seated))
        factors_FK = np.tile(np.array(IDLE)[:, None], self.computed)
        windows_KB = np.zeros((self.computed, self.setup.config.batch_sequences), np.int64)
        rates = {}
        for slot, curve in seated:
            rates[slot] = curve.lr(curve.state.step)
            factors_FK[:, slot] = _factors(curve, rates[slot])
            windows_KB[slot] = curve.setup.batches.window_numbers(curve.state.step)
        # Copies this small leave pageable memory before the call returns, so that nothing waits for the device.
        self.factors_FK[:, : self.computed].copy_(torch.from_numpy(factors_FK.astype(np.float32)), non_blocking=True)
        self.windows_KB[: self.computed].copy_(torch.from_numpy(windows_KB), non_blocking=True)
        self.step()
        for _, curve in seated:
            curve.state.step += 1
            curve.state.loss_count += 1
        return {slot: (lr, self.grad_norm_K[slot]) for slot, lr in rates.items()}

    def _step(self) -> None:
        """Forward, backward, clipping and AdamW of the computed slots, from `windows_KB` and `factors_FK`."""
        K, setup = self.computed, self.setup
        tokens_KBT = gather(self.train_tokens, self.windows_KB[:K], setup.config.model.seq_len)
        first, *others = tokens_KBT.split(setup.micro_batch, dim=1)
        gradient_KP = self._gradient(first)
        for chunk_KBT in others:
            gradient_KP += self._gradient(chunk_KBT)
        self.apply(gradient_KP, K)

    def _gradient(self, tokens_KBT: Tensor) -> Tensor:
        """A micro-batch's share of the gradient; its loss is added to the sums."""
        setup = self.setup
        with setup.autocast():
            inputs_KBT = tokens_KBT[..., :-1]
            losses_K = self.losses(inputs_KBT, tokens_KBT[..., 1:], setup.documents(inputs_KBT))
        losses_K = losses_K * (setup.micro_batch / setup.config.batch_sequences)
        pieces = torch.autograd.grad(losses_K.sum(), self.parameters)
        self.loss_sum_K[: len(losses_K)] += losses_K.detach()
        return torch.cat([piece.flatten(1) for piece in pieces], dim=1)

    @torch.no_grad()
    def _apply(self, gradient_KP: Tensor, K: int) -> None:
        """Clip and update, as `clip_grad_norm_` and decoupled AdamW (arXiv 1711.05101) do."""
        decay_K1, mean_share_K1, square_share_K1, clip_K1, rate_K1, root_K1, eps_K1 = self.factors_FK[:, :K, None]
        weights_KP, mean_KP, square_KP = self.weights_KP[:K], self.mean_KP[:K], self.square_KP[:K]
        norm_K1 = torch.linalg.vector_norm(gradient_KP, dim=1, keepdim=True)
        self.grad_norm_K[:K] = norm_K1[:, 0]
        gradient_KP = gradient_KP * (clip_K1 / (norm_K1 + 1e-6)).clamp(max=1.0)
        decayed_KP = weights_KP[:, : self.decayed]
        decayed_KP.addcmul_(decayed_KP, decay_K1, value=-1)
        mean_KP.lerp_(gradient_KP, mean_share_K1)
        square_KP.lerp_(gradient_KP * gradient_KP, square_share_K1)
        weights_KP.sub_(mean_KP / (square_KP.sqrt() * root_K1 + eps_K1) * rate_K1)

    def _compute(self, slots: int) -> None:
        """Make the stacked model's parameters the first slots' rows."""
        if slots == self.computed:
            return
        self.computed = slots
        shapes = {name: parameter.shape for name, parameter in self.scratch_model.named_parameters()}
        rows_KP = self.weights_KP[:slots]
        self.parameters = self.model.bind(
            {name: rows_KP[:, start:stop].view(slots, *shapes[name]) for name, (start, stop) in self.spans.items()}
        )

    def _at(self, rows_KP: Tensor, slot: int, name: str) -> Tensor:
        start, stop = self.spans[name]
        return rows_KP[slot, start:stop]


def _spans(model: GPT) -> tuple[dict[str, tuple[int, int]], int]:
    """Where each parameter lies in a row, those with weight decay first; and where they end."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, rest = parameter_groups(model, weight_decay=1.0)
    spans, start = {}, 0
    for parameter in (*decayed["params"], *rest["params"]):
        spans[names[parameter]] = (start, start + parameter.numel())
        start += parameter.numel()
    return spans, sum(parameter.numel() for parameter in decayed["params"])


def _rows(slots: int, size: int, device: str) -> Tensor:
    return torch.zeros(slots, -(-size // CACHE_LINE) * CACHE_LINE, device=device)[:, :size]


def _factors(curve: Curve, lr: float) -> tuple[float, ...]:
    """All that AdamW's next step needs to know of a curve, in the order that `Stack._apply` takes it."""
    optim, count = curve.setup.config.optim, curve.state.step + 1
    return (
        lr * optim.weight_decay,
        1 - optim.beta1,
        1 - optim.beta2,
        optim.clip_norm,
        lr / (1 - optim.beta1**count),
        (1 - optim.beta2**count) ** -0.5,
        optim.eps,
    )
