"""The shipped ladder makes every size that people ask for, and an impossible one is refused with its neighbours."""

import itertools

import pytest
from omegaconf import OmegaConf

from models.count import params_non_embedding
from models.ladder import TOLERANCE, choose_shape
from sweep.config.model import resolve
from sweep.config.schema import ModelSection

SIZES = [m * 10**e for e in range(3, 10) for m in (1, 3)][1:-1]  # 3k, 10k, 30k, ... 1B
RUNGS = [[1, 16, 1], [1, 32, 2], [2, 64, 2]]


def shipped(name: str) -> ModelSection:
    section = OmegaConf.merge(OmegaConf.structured(ModelSection), OmegaConf.load("conf/model/gpt.yaml"))
    if name != "gpt":
        changes = OmegaConf.load(f"conf/model/{name}.yaml")
        section = OmegaConf.merge(section, {key: value for key, value in changes.items() if key != "defaults"})
    return OmegaConf.to_object(section)


def count(rung) -> int:
    depth, width, _ = rung
    return 12 * depth * width**2


@pytest.mark.parametrize("variant", ["gpt", "gpt2"])
@pytest.mark.parametrize("params", SIZES)
def test_the_shipped_ladder_makes_every_decade(variant, params):
    section = shipped(variant)
    section.params = params
    made = params_non_embedding(resolve(section, vocab_size=512, seq_len=128))
    assert abs(made / params - 1) <= TOLERANCE


@pytest.mark.parametrize("mlp", ["relu2", "gelu", "swiglu"])
def test_the_shipped_ladder_climbs_in_small_steps(mlp):
    section = shipped("gpt")
    section.mlp = mlp
    sizes = []
    for depth, width, heads in section.ladder:
        section.depth, section.width, section.heads = depth, width, heads
        cfg = resolve(section, vocab_size=512, seq_len=128)
        assert cfg.head_dim * cfg.heads == cfg.width
        sizes.append(params_non_embedding(cfg))
    assert sizes == sorted(sizes)
    assert sizes[0] < 1_000
    assert sizes[-1] > 2_000_000_000
    steps = [(b / a, b) for a, b in itertools.pairwise(sizes)]
    assert max(step for step, size in steps if size > 7_000) <= (1.6 if mlp == "swiglu" else 1.45)
    assert max(step for step, size in steps if size > 4_000) <= 1.6


def test_nearest_in_logarithm():
    assert choose_shape(12_288, RUNGS, count) == (1, 32, 2)
    assert choose_shape(11_000, RUNGS, count) == (1, 32, 2)
    assert choose_shape(14_500, RUNGS, count) == (1, 32, 2)


@pytest.mark.parametrize(
    ("params", "neighbours"),
    [
        (6_000, r"3072 \(below: 1x16x1\) and 12288 \(above: 1x32x2\)"),
        (100, r"3072 \(above: 1x16x1\)"),
        (10**9, r"98304 \(below: 2x64x2\)"),
    ],
)
def test_a_size_between_rungs_is_refused_with_its_neighbours(params, neighbours):
    with pytest.raises(ValueError, match=rf"^model.params={params}: .*{neighbours}"):
        choose_shape(params, RUNGS, count)


@pytest.mark.parametrize(
    ("rungs", "message"),
    [([], "model.ladder: has no rung"), ([[1, 16]], r"\[1, 16\]"), ([[1, 16, 3]], "divisible"), ([[0, 8, 1]], "0, 8")],
)
def test_a_bad_ladder_is_refused(rungs, message):
    with pytest.raises(ValueError, match=message):
        choose_shape(3_000, rungs, count)
