"""The resolved shape that the section `model` asks for."""

from models.config import ModelConfig
from models.count import params_non_embedding
from models.ladder import Rung, choose_shape
from sweep.common.units import parse_count
from sweep.config.schema import ModelSection


def resolve(section: ModelSection, vocab_size: int, seq_len: int) -> ModelConfig:
    """The shape that `params` or depth, width and heads ask for; ValueError names the key that is wrong."""

    def config(rung: Rung) -> ModelConfig:
        return _config(section, rung, vocab_size, seq_len)

    if section.params is None:
        return config(_explicit_shape(section))
    given = [key for key in ("depth", "width", "heads") if getattr(section, key) is not None]
    if given:
        said = ", ".join(f"model.{key}={getattr(section, key)}" for key in given)
        raise ValueError(f"model.params={section.params}: chooses the shape, and so does {said}; give only one")
    rungs = [rung for rung in section.ladder if len(rung) != 3 or rung[2] % (section.kv_heads or 1) == 0]
    if section.ladder and not rungs:
        raise ValueError(f"model.kv_heads={section.kv_heads}: divides the heads of no rung of model.ladder")
    params = parse_count("model.params", section.params)
    return config(choose_shape(params, rungs, lambda rung: params_non_embedding(config(rung))))


def _explicit_shape(section: ModelSection) -> Rung:
    depth, width, heads = section.depth, section.width, section.heads
    if heads is None and width is not None and section.head_dim:
        if width % section.head_dim:
            raise ValueError(f"model.head_dim={section.head_dim}: must divide model.width={width}, or give model.heads")
        heads = width // section.head_dim
    if depth is None or width is None or heads is None:
        shape = {"depth": depth, "width": width, "heads": heads}
        missing = ", ".join(f"model.{key}" for key, value in shape.items() if value is None)
        raise ValueError(f"model.params=null: give a size such as model.params=1M, or a shape (missing: {missing})")
    if section.head_dim is None and heads > 0 and width % heads:
        raise ValueError(f"model.width={width}: must be a multiple of model.heads={heads}, or give model.head_dim")
    return depth, width, heads


def _config(section: ModelSection, rung: Rung, vocab_size: int, seq_len: int) -> ModelConfig:
    depth, width, heads = rung
    return ModelConfig(
        vocab_size=vocab_size,
        seq_len=seq_len,
        depth=depth,
        width=width,
        heads=heads,
        kv_heads=section.kv_heads if section.kv_heads is not None else heads,
        head_dim=section.head_dim if section.head_dim is not None else width // max(heads, 1),
        mlp_width=section.mlp_width if section.mlp_width is not None else _mlp_width(section.mlp, width),
        mlp=section.mlp,
        norm=section.norm,
        positions=section.positions,
        rope_base=section.rope_base,
        qk_norm=section.qk_norm,
        tied=section.tied,
        bias=section.bias,
        window=section.window,
        within_documents=section.within_documents,
    )


def _mlp_width(mlp: str, width: int) -> int:
    """4·width for two matrices; for SwiGLU's three, 8/3·width makes as many parameters (arXiv 2002.05202)."""
    return -(-8 * width // (3 * 8)) * 8 if mlp == "swiglu" else 4 * width
