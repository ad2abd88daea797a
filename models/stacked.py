"""K models of one shape as one: every parameter has a leading trial axis, and each trial sees its own sequences.

It is `models.gpt.GPT` with the layers that hold parameters exchanged: a matrix product becomes one batched product, an
embedding one look-up in all tables. Whatever has no parameters (attention, rotary positions, norms without gains, the
MLP's non-linearity) runs on the trial axis folded into the batch and cannot tell. Trials never meet: what one computes
does not depend on what the others hold, finite or not.

The explicit layers were measured against `torch.func` (`stack_module_state` and `vmap` over the unchanged GPT); see
`benchmarks/did_not_pay.md`.

Shape suffixes: K trials, B batch, T tokens, V vocabulary, C width, I inputs, O outputs, N heads, D head dimension.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ModelConfig
from models.embedding import embedding
from models.gpt import GPT, NORM_EPS, Rotary


class StackedGPT(GPT):
    """Several models of one config, of which it holds no parameters: `bind` says where they are.

    The loss is PyTorch's whatever the attention's backend is.
    """

    def __init__(self, cfg: ModelConfig, backend: str = "sdpa", device: str = "cpu") -> None:
        with torch.device("meta"):
            super().__init__(cfg, backend)
        for parent in [*self.modules()]:
            for name, child in [*parent.named_children()]:
                parent.register_module(name, _stacked(child))
        self.rotary = Rotary(cfg).to(device) if cfg.positions == "rope" else None

    def bind(self, tensors: dict[str, Tensor]) -> list[nn.Parameter]:
        """Make these, by GPT's names for them and with a leading trial axis, the parameters; returned in this order."""
        parameters = []
        for name, tensor in tensors.items():
            module, _, leaf = name.rpartition(".")
            parameters.append(nn.Parameter(tensor))
            setattr(self.get_submodule(module), leaf, parameters[-1])
        return parameters

    def losses(self, tokens_KBT: Tensor, targets_KBT: Tensor, documents_KBT: Tensor | None = None) -> Tensor:
        """losses_K: each trial's mean cross-entropy in nats per token, fp32."""
        if self.cfg.within_documents != (documents_KBT is not None):
            raise ValueError("losses: documents_KBT goes with model.within_documents=true, and only with it")
        documents = None if documents_KBT is None else documents_KBT.flatten(0, 1)
        x_NTC = self.features(tokens_KBT.flatten(0, 1), documents)  # N: trials · batch
        logits_RV = _product(x_NTC, self.head_weight()).flatten(0, -2)
        losses_R = F.cross_entropy(logits_RV.float(), targets_KBT.flatten(), reduction="none")
        return losses_R.view(len(tokens_KBT), -1).mean(1)

    def add_positions(self, x_BTC: Tensor) -> Tensor:
        if self.positions is None:
            return x_BTC
        positions_KTC = self.positions.weight
        T, C = x_BTC.shape[1:]
        return (x_BTC.view(len(positions_KTC), -1, T, C) + positions_KTC[:, None, :T]).view_as(x_BTC)


class StackedLinear(nn.Module):
    """x (K·B, …, I) → (K·B, …, O), each trial's rows by its own matrix."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = _unbound(layer.weight)
        self.bias = None if layer.bias is None else _unbound(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self.weight, self.bias)


class StackedEmbedding(nn.Module):
    """ids (K·B, T) → (K·B, T, C), each trial's by its own table."""

    def __init__(self, layer: nn.Embedding) -> None:
        super().__init__()
        self.weight = _unbound(layer.weight)

    def forward(self, ids: Tensor) -> Tensor:
        trials, rows, _ = self.weight.shape
        first_K1 = torch.arange(trials, device=ids.device)[:, None] * rows
        ids_KR = ids.reshape(trials, -1) + first_K1
        return embedding(ids_KR.view(ids.shape), self.weight.flatten(0, 1))


class StackedNorm(nn.Module):
    """A norm over the last dimension with each trial's own gain, and bias where there is one."""

    def __init__(self, layer: nn.RMSNorm | nn.LayerNorm) -> None:
        super().__init__()
        self.centred = isinstance(layer, nn.LayerNorm)
        self.eps = layer.eps if isinstance(layer, nn.LayerNorm) else NORM_EPS
        self.weight = _unbound(layer.weight)
        bias = getattr(layer, "bias", None)
        self.bias = None if bias is None else _unbound(bias)

    def forward(self, x: Tensor) -> Tensor:
        trials, width = self.weight.shape
        normed = F.layer_norm(x, (width,), eps=self.eps) if self.centred else F.rms_norm(x, (width,), eps=self.eps)
        rows_KRC = normed.view(trials, -1, width)
        if self.bias is None:
            return (rows_KRC * self.weight[:, None]).view_as(x)
        return torch.addcmul(self.bias[:, None], rows_KRC, self.weight[:, None]).view_as(x)


def _stacked(layer: nn.Module) -> nn.Module:
    """The layer's counterpart with a trial axis; a layer without parameters of its own stays as it is."""
    if isinstance(layer, nn.Linear):
        return StackedLinear(layer)
    if isinstance(layer, nn.Embedding):
        return StackedEmbedding(layer)
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm) and layer.weight is not None:
        return StackedNorm(layer)
    return layer


def _product(x: Tensor, weight_KOI: Tensor, bias_KO: Tensor | None = None) -> Tensor:
    rows_KRI = x.reshape(len(weight_KOI), -1, x.shape[-1])
    if bias_KO is not None:
        out_KRO = torch.baddbmm(bias_KO[:, None], rows_KRI, weight_KOI.transpose(1, 2))
    elif torch.compiler.is_compiling():
        out_KRO = _compiled_product(rows_KRI, weight_KOI)
    else:
        out_KRO = torch.bmm(rows_KRI, weight_KOI.transpose(1, 2))
    return out_KRO.view(*x.shape[:-1], -1)


def _compiled_product(x_KRI: Tensor, weight_KOI: Tensor) -> Tensor:
    if torch.is_autocast_enabled(x_KRI.device.type):  # which does not look into `_Product`
        dtype = torch.get_autocast_dtype(x_KRI.device.type)
        x_KRI, weight_KOI = x_KRI.to(dtype), weight_KOI.to(dtype)
    return _Product.apply(x_KRI, weight_KOI)


class _Product(torch.autograd.Function):
    """x_KRI, weight_KOI → out_KRO. PyTorch's own backward gives the weight's gradient transposed, and each would be
    copied where all are gathered into one matrix. Without a compiler its calls cost more than the copies."""

    @staticmethod
    def forward(ctx: Any, x_KRI: Tensor, weight_KOI: Tensor) -> Tensor:
        ctx.save_for_backward(x_KRI, weight_KOI)
        return torch.bmm(x_KRI, weight_KOI.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x_KRI, weight_KOI = ctx.saved_tensors
        (gradient_KRO,) = gradients
        return torch.bmm(gradient_KRO, weight_KOI), torch.bmm(gradient_KRO.transpose(1, 2), x_KRI)


def _unbound(parameter: Tensor) -> nn.Parameter:
    """Stands for a parameter with a trial axis until one is bound."""
    return nn.Parameter(parameter.new_empty((1, *parameter.shape)))
