"""A stacked model computes what its models compute alone, in every variant: losses and gradients, against float64."""

import pytest
import torch

from models.gpt import GPT
from models.stacked import StackedGPT
from tests.helpers.small_models import VARIANTS, alive, batch, config

torch.set_num_threads(1)
TRIALS = 3


def models(cfg) -> list[GPT]:
    """Different ones."""
    found = [alive(cfg) for _ in range(TRIALS)]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for model in found[1:]:
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return found


def batches(cfg):
    """tokens, targets, documents, each with a leading trial axis, another batch for each trial."""
    tokens_BT, targets_BT, documents_BT = batch(cfg, sequences=3 * TRIALS)
    return [x if x is None else x.unflatten(0, (TRIALS, 3)) for x in (tokens_BT, targets_BT, documents_BT)]


def together(cfg, alone: list[GPT]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    stacked = StackedGPT(cfg)
    names = [name for name, _ in alone[0].named_parameters()]
    bound = stacked.bind({name: torch.stack([m.get_parameter(name).detach() for m in alone]) for name in names})
    losses_K = stacked.losses(*batches(cfg))
    return losses_K.detach(), dict(zip(names, torch.autograd.grad(losses_K.sum(), bound), strict=True))


def separate(cfg, alone: list[GPT], trial: int, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model = alone[trial].to(dtype)
    loss = model.loss(*(None if x is None else x[trial] for x in batches(cfg)))
    named = dict(model.named_parameters())
    gradients = dict(zip(named, torch.autograd.grad(loss, [*named.values()]), strict=True))
    model.float()
    return loss.detach(), gradients


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_are_those_of_each_model_alone(variant):
    """No further from float64 than twice what the plain model errs by, and a few units in the last place."""
    cfg = config(**VARIANTS[variant])
    alone = models(cfg)
    losses_K, gradients = together(cfg, alone)
    for trial in range(TRIALS):
        loss, plain = separate(cfg, alone, trial, torch.float32)
        true_loss, truth = separate(cfg, alone, trial, torch.float64)
        ulp = torch.finfo(torch.float32).eps
        assert (losses_K[trial] - true_loss).abs() <= 2 * (loss - true_loss).abs() + 4 * ulp * true_loss.abs()
        for name, true in truth.items():
            error, allowed = (gradients[name][trial] - true).norm(), (plain[name] - true).norm()
            assert error <= 2 * allowed + 4 * ulp * true.norm(), (name, trial)


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_gradients_are_the_same_and_lie_as_they_are_gathered(autocast):
    cfg = config()
    alone = models(cfg)
    named = dict(alone[0].named_parameters())
    stacked = StackedGPT(cfg)
    bound = stacked.bind({name: torch.stack([m.get_parameter(name).detach() for m in alone]) for name in named})
    compiled = torch.compile(stacked.losses, backend="aot_eager", fullgraph=True, dynamic=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, found = (
            torch.autograd.grad(losses(*batches(cfg)).sum(), bound) for losses in (stacked.losses, compiled)
        )
    for name, plain, ours in zip(named, expected, found, strict=True):
        assert torch.equal(plain, ours), name
        assert ours.is_contiguous(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trial_is_bit_equal_whatever_its_neighbours_and_its_place(variant):
    cfg = config(**VARIANTS[variant])
    alone = models(cfg)
    losses_K, gradients = together(cfg, alone)
    with torch.no_grad():
        for parameter in alone[0].parameters():
            parameter.fill_(torch.nan)
    beside_nan, others = together(cfg, alone)
    assert torch.equal(beside_nan[1:], losses_K[1:])
    assert beside_nan[0].isnan()
    for name, gradient in gradients.items():
        assert torch.equal(others[name][1:], gradient[1:]), name


def test_documents_go_with_their_option():
    cfg = config()
    stacked = StackedGPT(cfg)
    tokens, targets, _ = batches(cfg)
    with pytest.raises(ValueError, match=r"losses: documents_KBT goes with model\.within_documents"):
        stacked.losses(tokens, targets, torch.zeros_like(tokens))
