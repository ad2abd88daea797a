"""Looking up embeddings, with a gradient that torch.compile leaves as it is.

PyTorch sums the gradients of one id's rows in segments. Inductor puts `index_put` in the place of that, which in
deterministic mode adds them one after the other on CUDA, and the commonest token comes hundreds of times in a batch. So
where a model is compiled, PyTorch's sum is one operation that nothing looks into.

Shape suffixes: R rows of the table, C width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Embedding(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return embedding(ids, self.weight)


def embedding(ids: Tensor, table_RC: Tensor) -> Tensor:
    """ids of any shape (…) → (…, C)."""
    return _Lookup.apply(ids, table_RC) if torch.compiler.is_compiling() else F.embedding(ids, table_RC)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, table_RC: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows = len(table_RC)
        return F.embedding(ids, table_RC)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors
        return None, embedding_gradient(gradients[0], ids, ctx.rows)


@torch.library.custom_op("sweep::embedding_gradient", mutates_args=())
def embedding_gradient(gradient: Tensor, ids: Tensor, rows: int) -> Tensor:
    """The gradient of a table of so many rows, (R, C), from that of what was looked up, (…, C)."""
    return torch.ops.aten.embedding_dense_backward(gradient.contiguous(), ids, rows, -1, False)


@embedding_gradient.register_fake
def _(gradient: Tensor, ids: Tensor, rows: int) -> Tensor:
    return gradient.new_empty(rows, gradient.shape[-1])
