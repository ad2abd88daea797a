"""Softmax cross-entropy of rows of logits in Triton: losses and gradients in one kernel, fp32 only in registers.

The idea is Liger-Kernel's (Hsu et al. 2024, arXiv 2410.10989): one program per row goes over it twice, once for the
running maximum and sum (the second time the row comes from the L2 cache), once for the gradient.

Shape suffixes: R rows (tokens), V vocabulary; v a tile of the vocabulary.
"""

import triton
import triton.language as tl


@triton.jit
def cross_entropy(
    logits, targets, losses, gradient, logits_r, logits_v, gradient_r, V, gradient_scale,
    BLOCK_V: tl.constexpr, WITH_GRADIENT: tl.constexpr,
):  # fmt: skip
    """losses_R = log Σ exp(logits) - logits[target], NaN for a target outside the vocabulary; and, if wanted,
    gradient_RV = (softmax - one-hot)·`gradient_scale`, which may overwrite the logits. One program per row."""
    row = tl.cast(tl.program_id(0), tl.int64)
    logits += row * logits_r
    target = tl.load(targets + row)
    max_logit = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for v0 in range(0, V, BLOCK_V):
        x_v = _load(logits, v0, logits_v, V, BLOCK_V)
        new_max = tl.maximum(max_logit, tl.max(x_v, 0))
        subtracted = tl.where(new_max == float("-inf"), 0.0, new_max)  # -inf less -inf is not a number
        total = total * tl.exp(max_logit - subtracted) + tl.sum(tl.exp(x_v - subtracted), 0)
        max_logit = new_max
    valid = (target >= 0) & (target < V)
    target_logit = tl.load(logits + target * logits_v, mask=valid, other=float("nan")).to(tl.float32)
    tl.store(losses + row, tl.log(total) - (target_logit - max_logit))  # exact even where logits are large
    if WITH_GRADIENT:
        tl.debug_barrier()  # the row's target logit has been read before it may be overwritten
        for v0 in range(0, V, BLOCK_V):
            v = v0 + tl.arange(0, BLOCK_V)
            x_v = _load(logits, v0, logits_v, V, BLOCK_V)
            gradient_v = tl.exp(x_v - max_logit) / total - tl.where(v == target, 1.0, 0.0)
            stored_v = (gradient_v * gradient_scale).to(gradient.dtype.element_ty)
            tl.store(gradient + row * gradient_r + v, stored_v, mask=v < V)


@triton.jit
def _load(logits, v0, logits_v, V, BLOCK_V: tl.constexpr):
    """A tile of the row from `v0` on in fp32, -inf beyond V; where it starts is counted in 64 bits."""
    v = tl.arange(0, BLOCK_V)
    tile = logits + tl.cast(v0, tl.int64) * logits_v
    return tl.load(tile + v * logits_v, mask=v0 + v < V, other=float("-inf")).to(tl.float32)


@triton.jit
def scale(x, factor, elements, BLOCK: tl.constexpr):
    """Multiply the `elements` numbers of a contiguous x by the fp32 scalar `factor`, in place. Where that is exactly 1
    nothing is read or written. Any number of programs."""
    by = tl.load(factor)
    if by != 1.0:
        for first in range(tl.cast(tl.program_id(0), tl.int64) * BLOCK, elements, tl.num_programs(0) * BLOCK):
            i = tl.arange(0, BLOCK)
            inside = first + i < elements
            x_i = tl.load(x + first + i, mask=inside, other=0.0).to(tl.float32)
            tl.store(x + first + i, (x_i * by).to(x.dtype.element_ty), mask=inside)
