"""Parameters, training FLOPs and memory of a GPT, from its config alone; tests check them on the built model.

Conventions, because conclusions depend on them (Pearce & Song 2024, arXiv 2406.12907; Porian et al. 2024,
arXiv 2406.19146):

**N.** `params_non_embedding` leaves out the token embedding, learned positions and an untied head, as Kaplan
et al. 2020 (arXiv 2001.08361) do; norms and biases stay in. `params_total` is everything, as Hoffmann et al.
2022 (arXiv 2203.15556) count it. A tied head is the embedding: it has no parameters of its own.

**C.** Per token, forward and backward, the backward twice the forward; a multiply and an add are two FLOPs.
- `exact`: every matrix product that training performs. Those with weights: 6 FLOPs per weight, the logits' too,
  whether or not the head is tied. Those of attention, q·kᵀ and weights·v: over the keys that a query sees,
  averaged over the positions of a sequence, which is (T+1)/2, or fewer with a window. Embedding look-ups, norms,
  activations, softmax and biases are not matrix products and count nothing. Document boundaries belong to the
  data and are not known here: with `within_documents` this is an upper bound.
- `six_n`: 6 · params_total. It prices the embedding look-up as a matrix product, and attention at nothing.
- `six_n_non_embedding`: 6 · params_non_embedding, Kaplan's C. It leaves out the logits, which are most of the
  work at small sizes.

**Memory.** What one process holds at the peak of a step of AdamW, without activation checkpointing: fp32
parameters, gradients and two moments; what each operation of the eager model with `sdpa` attention keeps for
its backward on the CPU (CUDA's fused norms keep less); the logits at their worst moment. The allocator's slack,
the CUDA context, evaluation and what a compiler saves are not in it; the `reference` backend keeps (T, T) weights
for every head on top.
"""

from dataclasses import dataclass

from models.config import ModelConfig

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class FlopsPerToken:
    """Training FLOPs per token, forward and backward, by three conventions (see the file's docstring)."""

    exact: float
    six_n: float
    six_n_non_embedding: float


def params_by_group(cfg: ModelConfig) -> dict[str, int]:
    """Parameters in embedding, positions, attention, mlp, norm and head; biases and the gains on queries and
    keys go with their matrix."""
    qkv, out, up, down = _matrices(cfg)
    bias = int(cfg.bias)
    qk_gain = cfg.head_dim if cfg.qk_norm else 0
    gains = (2 * cfg.depth + 1) * cfg.width if cfg.norm == "layernorm" else 0
    return {
        "embedding": cfg.vocab_size * cfg.width,
        "positions": cfg.seq_len * cfg.width if cfg.positions == "learned" else 0,
        "attention": cfg.depth * (_size(qkv, bias) + _size(out, bias) + qk_gain),
        "mlp": cfg.depth * (_size(up, bias) + _size(down, bias)),
        "norm": gains * (1 + bias),
        "head": 0 if cfg.tied else cfg.vocab_size * cfg.width,
    }


def params_total(cfg: ModelConfig) -> int:
    """Every parameter, embeddings included, a tied head once."""
    return sum(params_by_group(cfg).values())


def params_non_embedding(cfg: ModelConfig) -> int:
    """N: attention, MLPs and norms."""
    groups = params_by_group(cfg)
    return groups["attention"] + groups["mlp"] + groups["norm"]


def flops_per_token(cfg: ModelConfig) -> FlopsPerToken:
    """Training FLOPs per token, averaged over the positions of a full sequence."""
    attention = cfg.depth * 2 * cfg.heads * cfg.head_dim * mean_visible_keys(cfg)  # multiply-adds of two products
    return FlopsPerToken(
        exact=float(6 * (_multiplied_weights(cfg) + attention)),
        six_n=float(6 * params_total(cfg)),
        six_n_non_embedding=float(6 * params_non_embedding(cfg)),
    )


def mean_visible_keys(cfg: ModelConfig) -> float:
    """Keys that a query sees, itself included, averaged over a sequence (documents disregarded)."""
    window = min(cfg.window or cfg.seq_len, cfg.seq_len)
    return (window * (window + 1) / 2 + (cfg.seq_len - window) * window) / cfg.seq_len


def memory_bytes(cfg: ModelConfig, micro_batch_sequences: int, precision: str) -> dict[str, int]:
    """Bytes at the peak of a training step by group (see the file's docstring), and their "total"."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision}: must be one of {', '.join(PRECISIONS)}")
    total = params_total(cfg)
    tokens = micro_batch_sequences * cfg.seq_len
    low = precision == "bf16"
    element = 2 if low else 4
    block = _block_activation_bytes(cfg, element)
    stem = _norm_activation_bytes(cfg, element) + 2 * 8  # the last norm; token ids and targets as int64
    if cfg.norm == "rmsnorm":
        stem += 4 * cfg.width + 4  # the embedding before its norm
    groups = {
        "parameters": 4 * total,
        "gradients": 4 * total,
        "optimizer": 8 * total,
        # Autocast keeps a bf16 copy of every matrix until the backward ends.
        "cast_weights": 2 * _multiplied_weights(cfg) if low else 0,
        "activations": tokens * (cfg.depth * block + stem) + _mask_bytes(cfg, micro_batch_sequences, element),
        # The log-probabilities that cross-entropy keeps and its gradient before and after the softmax, all
        # fp32; in bf16 also the logits as they leave their product.
        "logits": tokens * cfg.vocab_size * (14 if low else 12),
    }
    return {**groups, "total": sum(groups.values())}


def largest_micro_batch(cfg: ModelConfig, batch_sequences: int, precision: str, available_bytes: float) -> int:
    """The most sequences at a time that divide the batch and fit into memory; 1 where not even one fits."""
    divisors = [size for size in range(batch_sequences, 0, -1) if batch_sequences % size == 0]
    fitting = (size for size in divisors if memory_bytes(cfg, size, precision)["total"] <= available_bytes)
    return next(fitting, 1)


def _block_activation_bytes(cfg: ModelConfig, element: int) -> int:
    """Per token: what one block's operations keep for the backward, in the order in which they run."""
    H, K, D = cfg.heads, cfg.kv_heads, cfg.head_dim
    norms = 2 * _norm_activation_bytes(cfg, element)
    qkv = element * (H + 2 * K) * D
    rotated = element * (H + K) * D if cfg.qk_norm or cfg.positions == "rope" else 0
    # Normalising queries and keys keeps their root mean squares and them before the gain, and in bf16 an fp32 copy.
    qk_norm = 4 * (H + K) * (1 + D * (1 if element == 4 else 2)) if cfg.qk_norm else 0
    attention = element * H * D + 4 * H  # its output, which is the out matrix's input too, and a log-sum-exp
    mlp = element * cfg.mlp_width * {"relu2": 2, "gelu": 2, "swiglu": 4}[cfg.mlp]
    return norms + qkv + rotated + qk_norm + attention + mlp


def _norm_activation_bytes(cfg: ModelConfig, element: int) -> int:
    """Per token: the fp32 residual stream, its statistics, and the normalised input of the next matrix."""
    statistics = 2 if cfg.norm == "layernorm" else 1
    return 4 * cfg.width + 4 * statistics + element * cfg.width


def _mask_bytes(cfg: ModelConfig, sequences: int, element: int) -> int:
    """What every block keeps of a mask that is not plainly causal: one for all sequences, or one for each."""
    T = cfg.seq_len
    if cfg.within_documents:
        return cfg.depth * sequences * T * T * element
    return cfg.depth * T * T * element if 0 < cfg.window < T else 0


def _multiplied_weights(cfg: ModelConfig) -> int:
    """Weights that each token is multiplied by: every block's matrices and the head's, tied or not."""
    return cfg.depth * sum(_size(matrix) for matrix in _matrices(cfg)) + cfg.vocab_size * cfg.width


def _matrices(cfg: ModelConfig) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of one block's matrices: qkv, attention out, MLP up, MLP down."""
    up_outputs = cfg.mlp_width * (2 if cfg.mlp == "swiglu" else 1)
    return (
        (cfg.width, (cfg.heads + 2 * cfg.kv_heads) * cfg.head_dim),
        (cfg.heads * cfg.head_dim, cfg.width),
        (cfg.width, up_outputs),
        (cfg.mlp_width, cfg.width),
    )


def _size(matrix: tuple[int, int], bias: int = 0) -> int:
    inputs, outputs = matrix
    return outputs * (inputs + bias)
