"""The decoder-only transformer that `ModelConfig` describes, and nothing that trains it.

The default is today's practice for small models: rotary positions (arXiv 2104.09864), pre-normalisation by
RMS without gains (as nanochat; a gain before a matrix is the matrix's to learn), of the embedding too, normalised
queries and keys (arXiv 2302.05442), squared ReLU (arXiv 2109.08668), no biases, an untied head that starts at zero.
Two choices were measured on Python source (12k parameters, 1,000 steps of 1,024 tokens, two seeds that agreed within
0.02): normalising the embedding took 0.14 nats off a loss of 3.40; a gain on normalised queries and keys, without
which small heads cannot attend sharply (|q·k|/√D ≤ √D), another 0.05.
`conf/model/gpt2.yaml` turns it into GPT-2's: learned positions, LayerNorm, GELU, biases, a tied head.

Parameters are fp32. Under autocast to bf16 the residual stream, the norms' statistics and the loss stay fp32.

Shape suffixes: B batch, T tokens, V vocabulary, C width, H query heads, K key/value heads, D head dimension,
F MLP width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.attention import attention, check_backend
from kernels.cross_entropy import backend_beside, linear_cross_entropy
from models.config import ModelConfig
from models.embedding import Embedding

NORM_EPS = 1e-6
EMBEDDING_STD = 0.02  # small beside an Adam step, whose size does not depend on it: embeddings learn fast


class GPT(nn.Module):
    """`GPT(cfg, backend).init_weights(seed)`. The backend of attention and loss changes only rounding and speed."""

    def __init__(self, cfg: ModelConfig, backend: str = "sdpa") -> None:
        super().__init__()
        check_backend(backend, cfg.head_dim)
        self.cfg, self.loss_backend = cfg, backend_beside(backend)
        self.embedding = Embedding(cfg.vocab_size, cfg.width)
        self.positions = Embedding(cfg.seq_len, cfg.width) if cfg.positions == "learned" else None
        self.embedding_norm = _norm(cfg) if cfg.norm == "rmsnorm" else None
        self.blocks = nn.ModuleList(Block(cfg, backend) for _ in range(cfg.depth))
        self.norm = _norm(cfg)
        self.head = None if cfg.tied else nn.Linear(cfg.width, cfg.vocab_size, bias=False)
        self.rotary = Rotary(cfg) if cfg.positions == "rope" else None

    @torch.no_grad()
    def init_weights(self, seed: int) -> "GPT":
        """Sets every parameter from `seed` alone, the same on every device; returns the model.

        Matrices that read the residual stream start at standard deviation 1/√fan_in, which suits any width.
        Those that write to it start at zero, so that every block begins as the identity, and so does an
        untied head: the first loss is log V. Biases start at zero, gains at one.
        """
        generator = torch.Generator(device="cpu").manual_seed(seed)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                starts_at_zero = name == "head" or name.endswith((".out", ".down"))
                _normal(module.weight, 0.0 if starts_at_zero else module.in_features**-0.5, generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                _normal(module.weight, EMBEDDING_STD, generator)
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.weight is not None:
                module.weight.fill_(1.0)
                if isinstance(module, nn.LayerNorm) and module.bias is not None:
                    module.bias.zero_()
        return self

    def forward(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Token ids, and document ids when attention stays within them (none: one document) → logits_BTV."""
        return F.linear(self.features(tokens_BT, documents_BT), self.head_weight())

    def features(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """What the head reads → x_BTC."""
        x_BTC = self.add_positions(self.embedding(tokens_BT))
        if self.embedding_norm is not None:
            x_BTC = self.embedding_norm(x_BTC)
        rotary = None if self.rotary is None else self.rotary(x_BTC.shape[1])
        for block in self.blocks:
            x_BTC = block(x_BTC, rotary, documents_BT)
        return self.norm(x_BTC)

    def add_positions(self, x_BTC: Tensor) -> Tensor:
        """Learned positions, where the model has them."""
        return x_BTC if self.positions is None else x_BTC + self.positions.weight[: x_BTC.shape[1]]

    def head_weight(self) -> Tensor:
        """head_VC, which a tied model shares with its embedding."""
        return self.embedding.weight if self.head is None else self.head.weight

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats per token, an fp32 scalar."""
        if self.cfg.within_documents != (documents_BT is not None):
            raise ValueError("loss: documents_BT goes with model.within_documents=true, and only with it")
        x_BTC = self.features(tokens_BT, documents_BT)
        return linear_cross_entropy(x_BTC, self.head_weight(), targets_BT, backend=self.loss_backend)

    @torch.no_grad()
    def generate(self, prompt_T: Tensor, n_tokens: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """The `n_tokens` ids sampled after a prompt of at least one token; 0 temperature takes the likeliest.

        Each is drawn given the last `seq_len` tokens, on the generator's device.
        """
        tokens_T = prompt_T
        for _ in range(n_tokens):
            logits_V = self(tokens_T[None, -self.cfg.seq_len :])[0, -1].float()
            if temperature == 0:
                next_1 = logits_V.argmax(keepdim=True)
            else:
                probabilities_V = (logits_V / temperature).softmax(-1).to(generator.device)
                next_1 = torch.multinomial(probabilities_V, 1, generator=generator)
            tokens_T = torch.cat((tokens_T, next_1.to(tokens_T)))
        return tokens_T[len(prompt_T) :]


class Block(nn.Module):
    """Attention, then the MLP, each added to the residual stream after a norm of its own."""

    def __init__(self, cfg: ModelConfig, backend: str) -> None:
        super().__init__()
        self.attention_norm = _norm(cfg)
        self.attention = Attention(cfg, backend)
        self.mlp_norm = _norm(cfg)
        self.mlp = MLP(cfg)

    def forward(self, x_BTC: Tensor, rotary: tuple[Tensor, Tensor] | None, documents_BT: Tensor | None) -> Tensor:
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC), rotary, documents_BT)
        return x_BTC + self.mlp(self.mlp_norm(x_BTC))


class Attention(nn.Module):
    """One matrix makes queries, keys and values. Queries and keys stay side by side until they are rotated:
    at small sizes the number of operations is the cost."""

    def __init__(self, cfg: ModelConfig, backend: str) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = cfg.heads, cfg.kv_heads, cfg.head_dim
        self.window, self.backend = cfg.window, backend
        self.qkv = nn.Linear(cfg.width, (cfg.heads + 2 * cfg.kv_heads) * cfg.head_dim, bias=cfg.bias)
        self.qk_norm = nn.RMSNorm(cfg.head_dim, eps=NORM_EPS) if cfg.qk_norm else None
        self.out = nn.Linear(cfg.heads * cfg.head_dim, cfg.width, bias=cfg.bias)

    def forward(self, x_BTC: Tensor, rotary: tuple[Tensor, Tensor] | None, documents_BT: Tensor | None) -> Tensor:
        H, K, D = self.heads, self.kv_heads, self.head_dim
        heads_BTND = self.qkv(x_BTC).unflatten(-1, (H + 2 * K, D))
        qk_BTND, v_BTKD = heads_BTND.split((H + K, K), dim=2)
        if self.qk_norm is not None:
            qk_BTND = self.qk_norm(qk_BTND.to(self.qk_norm.weight.dtype))  # fused only when the types agree
        if rotary is not None:
            qk_BTND = rotate(qk_BTND, *rotary)
        q_BTHD, k_BTKD = qk_BTND.to(v_BTKD.dtype).split((H, K), dim=2)
        out_BTHD = attention(
            q_BTHD, k_BTKD, v_BTKD, window=self.window, documents_BT=documents_BT, backend=self.backend
        )
        return self.out(out_BTHD.flatten(2))


class MLP(nn.Module):
    """relu(x)² (arXiv 2109.08668), silu(gate)·x (SwiGLU, arXiv 2002.05202), or GELU."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.kind = cfg.mlp
        up_width = 2 * cfg.mlp_width if cfg.mlp == "swiglu" else cfg.mlp_width
        self.up = nn.Linear(cfg.width, up_width, bias=cfg.bias)
        self.down = nn.Linear(cfg.mlp_width, cfg.width, bias=cfg.bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        h_BTF = self.up(x_BTC)
        if self.kind == "relu2":
            h_BTF = F.relu(h_BTF)
            h_BTF = h_BTF * h_BTF  # half the time of square(), whose backward goes through pow
        elif self.kind == "swiglu":
            gate_BTF, h_BTF = h_BTF.chunk(2, dim=-1)
            h_BTF = F.silu(gate_BTF) * h_BTF
        else:
            h_BTF = F.gelu(h_BTF, approximate="tanh")
        return self.down(h_BTF)


class Rotary(nn.Module):
    """The tables for `rotate`: dimension i turns with i + D/2, by t · base^(-2i/D) radians at position t."""

    cos_T1D: Tensor
    sin_T1D: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        half = torch.arange(cfg.head_dim // 2, dtype=torch.float64)
        radians_per_token = cfg.rope_base ** (-2 * half / cfg.head_dim)
        angles = torch.arange(cfg.seq_len, dtype=torch.float64)[:, None, None] * radians_per_token
        cos, sin = angles.cos(), angles.sin()
        self.register_buffer("cos_T1D", torch.cat((cos, cos), -1).float(), persistent=False)
        self.register_buffer("sin_T1D", torch.cat((-sin, sin), -1).float(), persistent=False)

    def forward(self, tokens: int) -> tuple[Tensor, Tensor]:
        return self.cos_T1D[:tokens], self.sin_T1D[:tokens]


def rotate(x_BTND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864, eq. 34; halves, not neighbours, are paired) in three operations."""
    return torch.addcmul(x_BTND * cos_T1D, x_BTND.roll(x_BTND.shape[-1] // 2, -1), sin_T1D)


def parameter_groups(model: GPT, weight_decay: float) -> list[dict]:
    """For an optimizer: matrices decay; embeddings, biases and gains do not."""
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    decays = [p for p in model.parameters() if p.ndim == 2 and p not in embeddings]
    rest = [p for p in model.parameters() if p.ndim != 2 or p in embeddings]
    return [{"params": decays, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _norm(cfg: ModelConfig) -> nn.Module:
    if cfg.norm == "layernorm":
        return nn.LayerNorm(cfg.width, bias=cfg.bias)
    return nn.RMSNorm(cfg.width, eps=NORM_EPS, elementwise_affine=False)


def _normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    weight.copy_(torch.randn(weight.shape, generator=generator) * std)
