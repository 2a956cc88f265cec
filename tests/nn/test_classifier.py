"""The classifier's network is the encoder half of the UNet, and its gradient is one."""

from __future__ import annotations

import pytest
import torch

from sfumato.nn import UNet, UNetConfig
from sfumato.nn.classifier import ClassifierNet

from .perturbed import perturbed

TINY = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "groups": 4}
DDPM = {"adaptive": False, "residual_resampling": False, "head_channels": 0}
STYLES = pytest.mark.parametrize("style", [{}, DDPM, {"patch": 2, "attention": (1,)}], ids=["adm", "ddpm", "patches"])


@STYLES
def test_it_is_the_unets_way_down_and_middle(style):
    """With a UNet's own weights, the features are the pooled output of that UNet's middle."""
    torch.manual_seed(0)
    config = UNetConfig(**TINY, **style)
    unet, net = perturbed(UNet(config, (1, 8, 8))), perturbed(ClassifierNet(config, (1, 8, 8), 5))
    wanted = net.state_dict()
    theirs = {
        name: x for name, x in unet.state_dict().items() if name in wanted and not name.startswith(("norm", "out"))
    }
    for name in ("film.weight", "film.bias"):  # the UNet tells its way up too, after these
        theirs[name] = theirs[name][: len(wanted[name])]
    assert wanted.keys() - theirs.keys() == {"norm.weight", "norm.bias", "out.weight", "out.bias"}
    net.load_state_dict({**wanted, **theirs})

    seen = []
    unet.middle[-1].register_forward_hook(lambda module, given, found: seen.append(found))
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 3.0, 700.0])
    unet(x, t)
    h = torch.nn.functional.group_norm(seen[0], 4, net.norm.weight, net.norm.bias, config.norm_eps)
    features = (h * torch.sigmoid(h)).mean((2, 3))
    torch.testing.assert_close(net.features(x, t), features)
    torch.testing.assert_close(net(x, t), features @ net.out.weight.T + net.out.bias)
    assert features.shape == (3, net.width) == (3, 16)


@STYLES
def test_the_gradient_is_the_slope_of_the_log_probability(style):
    """d log p(y|x_t)/dx_t against central differences in float64: all of 2 x 64 directions."""
    torch.manual_seed(1)
    net = perturbed(ClassifierNet(UNetConfig(**TINY, **style), (1, 8, 8), 3)).double().eval()
    x, t, y = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([0.0, 40.0]).double(), torch.tensor([2, 0])

    def log_p(x_t: torch.Tensor) -> torch.Tensor:
        return net(x_t, t).log_softmax(1)[torch.arange(2), y]

    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(log_p(x).sum(), x)
    h, slopes = 1e-5, torch.zeros(2, 64, dtype=torch.float64)
    with torch.no_grad():
        for i in range(64):
            step = torch.zeros(64, dtype=torch.float64)
            step[i] = h
            step = step.reshape(1, 8, 8)
            slopes[:, i] = (log_p(x + step) - log_p(x - step)) / (2 * h)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient.flatten(1), slopes, atol=1e-8, rtol=1e-6)


@STYLES
def test_a_row_is_the_same_alone_and_in_any_batch(style):
    torch.manual_seed(2)
    net = perturbed(ClassifierNet(UNetConfig(**TINY, **style), (3, 6, 8), 4)).eval()
    x, t = torch.randn(5, 3, 6, 8), 100 * torch.rand(5)
    together = net(x, t)
    torch.testing.assert_close(net(x.flip(0), t.flip(0)).flip(0), together, atol=1e-5, rtol=1e-5)
    for row in range(5):
        torch.testing.assert_close(net(x[row : row + 1], t[row : row + 1])[0], together[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 9), (1, 7, 6), (1, 3, 4, 5)])
def test_signals_images_and_volumes_begin_undecided(shape):
    torch.manual_seed(3)
    net = ClassifierNet(UNetConfig(**TINY), shape, 4)
    x = torch.randn(2, *shape, requires_grad=True)
    logits = net(x, torch.rand(2))
    assert logits.shape == (2, 4)
    assert not logits.any()
    perturbed(net)(x, torch.rand(2)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_it_is_told_the_time():
    torch.manual_seed(4)
    net = perturbed(ClassifierNet(UNetConfig(**TINY), (1, 8, 8), 4))
    x = torch.randn(1, 1, 8, 8).expand(2, 1, 8, 8)
    one, other = net(x, torch.tensor([1.0, 500.0]))
    assert not torch.allclose(one, other, atol=1e-2)


def test_what_does_not_fit_is_answered_in_one_line():
    net = ClassifierNet(UNetConfig(**TINY), (1, 8, 8), 4)
    for x, t, says in [((2, 3, 8, 8), (2,), r"\(2, 3, 8, 8\)"), ((2, 1, 8, 8), (3,), r"t has shape \(3,\)")]:
        with pytest.raises(ValueError, match=says):
            net(torch.zeros(x), torch.zeros(t))
    with pytest.raises(ValueError, match="1 classes came"):
        ClassifierNet(UNetConfig(**TINY), (1, 8, 8), 1)
    with pytest.raises(ValueError, match="use mlp"):
        ClassifierNet(UNetConfig(**TINY), (8,), 2)
    with pytest.raises(ValueError, match="patch = 3 does not divide"):
        ClassifierNet(UNetConfig(**TINY, patch=3), (1, 8, 8), 2)
