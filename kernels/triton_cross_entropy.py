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
        v = v0 + tl.arange(0, BLOCK_V)
        x_v = tl.load(logits + v * logits_v, mask=v < V, other=float("-inf")).to(tl.float32)
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
            x_v = tl.load(logits + v * logits_v, mask=v < V, other=float("-inf")).to(tl.float32)
            gradient_v = tl.exp(x_v - max_logit) / total - tl.where(v == target, 1.0, 0.0)
            stored_v = (gradient_v * gradient_scale).to(gradient.dtype.element_ty)
            tl.store(gradient + row * gradient_r + v, stored_v, mask=v < V)
