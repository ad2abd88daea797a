"""A compiled model's embedding gradient is PyTorch's own, bit for bit, and stays one operation."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch.nn import functional as F

from models.embedding import Embedding, embedding_gradient


@pytest.fixture
def example():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(11, (3, 4, 16), generator=generator)
    table = torch.randn(13, 8, generator=generator, requires_grad=True)
    return ids, table, torch.randn(3, 4, 16, 8, generator=generator)


def gradient(lookup, ids, table, weights):
    return torch.autograd.grad((lookup(ids, table) * weights).sum(), table)[0]


def test_compiled_as_eager_and_never_taken_apart(example):
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.code)
        return make_boxed_func(graph.forward)

    ids, table, weights = example
    layer = Embedding(*table.shape)
    layer.weight = torch.nn.Parameter(table.detach().clone())
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, decompositions=select_decomp_table())
    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=False)
    expected = gradient(F.embedding, *example)
    assert torch.equal(gradient(lambda ids, _: compiled(ids), ids, layer.weight, weights), expected)
    assert torch.equal(gradient(lambda ids, _: layer(ids), ids, layer.weight, weights), expected)
    assert any("sweep.embedding_gradient" in code for code in graphs)
    assert not any("index_put" in code for code in graphs)


def test_the_operation_is_registered_as_torch_wants_it(example):
    ids, table, weights = example
    torch.library.opcheck(embedding_gradient, (weights, ids, len(table)))
    torch.library.opcheck(embedding_gradient, (weights.to(torch.bfloat16)[..., ::2], ids, len(table)))
