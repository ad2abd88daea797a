"""The resolved shape of a GPT: everything that `models.gpt` builds and `models.count` counts, nothing derived."""

from dataclasses import dataclass

MLPS = ("relu2", "swiglu", "gelu")
NORMS = ("rmsnorm", "layernorm")
POSITIONS = ("rope", "learned")


@dataclass
class ModelConfig:
    """A decoder-only transformer. All sizes are in elements, `seq_len` and `window` in tokens."""

    vocab_size: int
    seq_len: int
    depth: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    mlp: str = "relu2"
    norm: str = "rmsnorm"
    positions: str = "rope"
    rope_base: float = 10_000.0
    qk_norm: bool = True
    tied: bool = False
    bias: bool = False
    window: int = 0  # keys that a query sees, itself included; 0 means all before it
    within_documents: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "seq_len", "depth", "width", "heads", "kv_heads", "head_dim", "mlp_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}: must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.kv_heads={self.kv_heads}: must divide model.heads={self.heads} (grouped-query attention)"
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"model.head_dim={self.head_dim}: rotary positions need an even head dimension")
        if self.window < 0:
            raise ValueError(f"model.window={self.window}: use 0 for no window, or a number of tokens")
        for name, valid in (("mlp", MLPS), ("norm", NORMS), ("positions", POSITIONS)):
            if getattr(self, name) not in valid:
                raise ValueError(f"model.{name}={getattr(self, name)!r}: must be one of {', '.join(valid)}")
