"""What a person may write under `model`, what it means, and how each mistake is refused."""

import pytest

from sweep.config.model import resolve
from sweep.config.schema import ModelSection

LADDER = [[1, 16, 1], [1, 32, 2], [2, 64, 4]]


def section(**keys) -> ModelSection:
    return ModelSection(**{"ladder": LADDER, **keys})


def test_a_size_picks_a_shape():
    cfg = resolve(section(params=12_000), vocab_size=512, seq_len=128)
    assert (cfg.depth, cfg.width, cfg.heads, cfg.kv_heads, cfg.head_dim, cfg.mlp_width) == (1, 32, 2, 2, 16, 128)
    assert (cfg.vocab_size, cfg.seq_len) == (512, 128)


def test_an_explicit_shape():
    cfg = resolve(section(depth=3, width=48, heads=4, kv_heads=2, mlp_width=50), vocab_size=9, seq_len=8)
    assert (cfg.depth, cfg.width, cfg.heads, cfg.kv_heads, cfg.head_dim, cfg.mlp_width) == (3, 48, 4, 2, 12, 50)


def test_heads_follow_from_the_head_dimension():
    assert resolve(section(depth=1, width=64, head_dim=16), vocab_size=9, seq_len=8).heads == 4


@pytest.mark.parametrize(("width", "expected"), [(16, 48), (24, 64), (768, 2048)])
def test_swiglu_has_as_many_parameters_in_three_matrices(width, expected):
    assert resolve(section(depth=1, width=width, heads=1, mlp="swiglu"), 9, 8).mlp_width == expected


def test_grouped_queries_use_only_rungs_that_they_divide():
    cfg = resolve(section(params=11_000, kv_heads=2), vocab_size=9, seq_len=8)
    assert (cfg.width, cfg.heads, cfg.kv_heads) == (32, 2, 2)
    with pytest.raises(ValueError, match=r"model\.kv_heads=5: divides the heads of no rung"):
        resolve(section(params=10_000, kv_heads=5), vocab_size=9, seq_len=8)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"model.params=null: .*missing: model.depth, model.width, model.heads"),
        ({"depth": 1, "width": 32}, r"missing: model.heads"),
        ({"params": 3_000, "depth": 2}, r"model.params=3000: .*model.depth=2"),
        ({"params": 6_000}, r"model.params=6000: .*3088.*12304"),
        ({"depth": 1, "width": 33, "heads": 2}, r"model.width=33: .*model.heads=2"),
        ({"depth": 1, "width": 33, "head_dim": 16}, r"model.head_dim=16: .*model.width=33"),
        ({"depth": 0, "width": 32, "heads": 2}, r"model.depth=0"),
        ({"depth": 1, "width": 32, "heads": 0}, r"model.heads=0"),
        ({"depth": 1, "width": 32, "heads": 4, "kv_heads": 3}, r"model.kv_heads=3"),
        ({"depth": 1, "width": 15, "heads": 1}, r"model.head_dim=15: .*even"),
        ({"depth": 1, "width": 32, "heads": 2, "mlp": "relu"}, r"model.mlp='relu': .*relu2, swiglu, gelu"),
        ({"depth": 1, "width": 32, "heads": 2, "window": -1}, r"model.window=-1"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(keys, message):
    with pytest.raises(ValueError, match=message) as refused:
        resolve(section(**keys), vocab_size=512, seq_len=128)
    assert "\n" not in str(refused.value)
