"""Networks: shapes, independence of rows, smoothness in the condition, labels, and the way back from a config."""

import json

import pytest
import torch
from torch import Tensor, nn

from sdediff.networks import MLP, NETWORKS, UNet, Waves, build

CASES = {
    "mlp-plane": ("mlp", {"shape": (2,), "width": 32, "depth": 2}, (2,)),
    "mlp-digits": ("mlp", {"shape": (1, 8, 8), "width": 48, "depth": 2, "classes": 3}, (1, 8, 8)),
    "unet-8": ("unet", {"width": 8, "multipliers": (1, 2)}, (1, 8, 8)),
    "unet-28": ("unet", {"width": 8, "multipliers": (1, 2, 2), "attention": (2,), "heads": 2}, (1, 28, 28)),
    "unet-28-odd": ("unet", {"width": 8, "multipliers": (1, 1, 1, 2), "groups": 3}, (1, 28, 28)),
    "unet-32": ("unet", {"channels": 3, "width": 8, "blocks": 2, "dropout": 0.1, "classes": 3}, (3, 32, 32)),
    "unet-patch": ("unet", {"width": 8, "multipliers": (1, 2), "patch": 2, "classes": 3}, (1, 8, 8)),
    "unet-one-level": ("unet", {"width": 8, "multipliers": (1,), "attention": (0,)}, (1, 8, 8)),
}
EACH = pytest.mark.parametrize(("name", "config", "shape"), CASES.values(), ids=CASES.keys())


def awake(name: str, config: dict) -> MLP | UNet:
    """A network in evaluation mode whose last layer is not zero, as after some training."""
    torch.manual_seed(0)
    net = build(name, config).eval()
    nn.init.normal_(net.leave.weight, std=0.1)
    return net


def batch(n: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, *shape, generator=generator), torch.linspace(-5, 7, n)


@EACH
def test_answer_has_the_shape_of_x_and_a_fresh_network_answers_zero(name, config, shape):
    x, condition = batch(3, shape)
    assert awake(name, config)(x, condition).shape == x.shape
    assert build(name, config)(x, condition).abs().max() == 0


@EACH
def test_a_row_alone_is_the_row_in_its_batch(name, config, shape):
    net, (x, condition) = awake(name, config), batch(5, shape)
    with torch.no_grad():
        together = net(x, condition)
        alone = torch.cat([net(x[i : i + 1], condition[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    assert together.std() > 0.01
    assert (together[0] - together[1]).abs().max() > 1e-3


@EACH
def test_the_condition_is_heard(name, config, shape):
    net, (x, _) = awake(name, config), batch(4, shape)
    with torch.no_grad():
        assert (net(x, torch.full((4,), -2.0)) - net(x, torch.full((4,), 2.0))).abs().max() > 1e-2


@EACH
def test_one_condition_for_all_is_that_condition_in_every_row(name, config, shape):
    net, (x, _) = awake(name, config), batch(4, shape)
    labels = None if config.get("classes") is None else torch.arange(4)
    with torch.no_grad():
        one, many = net(x, torch.full((1,), 1.5), labels), net(x, torch.full((4,), 1.5), labels)
    torch.testing.assert_close(one, many, atol=1e-5, rtol=0)


@EACH
def test_config_and_state_bring_the_same_network_back(name, config, shape):
    net, (x, condition) = awake(name, config), batch(3, shape)
    again = build(name, json.loads(json.dumps(net.config))).eval()
    again.load_state_dict(net.state_dict())
    assert again.config == net.config
    assert torch.equal(again(x, condition), net(x, condition))


@EACH
def test_gradient_reaches_every_parameter_after_the_first_step(name, config, shape):
    torch.manual_seed(0)
    net = build(name, config)
    classes = config.get("classes")
    x, condition = batch(8, shape)
    labels = None if classes is None else torch.arange(8) % (classes + 1)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(2):
        optimiser.zero_grad()
        (net(x, condition, labels) - x.roll(1, 0)).square().mean().backward()
        optimiser.step()
    silent = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@EACH
def test_smooth_in_the_condition(name, config, shape):
    """Finite differences converge to a derivative as h^2, as only a smooth function's do, and the second stays tame."""
    net = awake(name, config).double()
    x, condition = batch(5, shape)
    x, condition = x.double(), condition.double()

    def slope(h: float) -> Tensor:
        return (net(x, condition + h) - net(x, condition - h)) / (2 * h)

    with torch.no_grad():
        coarse, fine, finest = slope(0.08), slope(0.04), slope(0.02)
        middle = net(x, condition)
        second = (net(x, condition + 0.01) - 2 * middle + net(x, condition - 0.01)) / 1e-4
    ratio = (coarse - fine).norm() / (fine - finest).norm()
    assert 3.6 < ratio < 4.4
    high = net.config["high"]
    assert second.norm() < 4 * high**2 * middle.norm()


def test_waves_turn_no_faster_than_asked():
    waves = Waves(16, 0.1, 2.0).double()
    condition = torch.linspace(-5, 7, 400, dtype=torch.float64)
    slopes = waves(condition).diff(dim=0).abs() / condition.diff()[0]
    assert 1.9 < slopes.max() <= 2.0
    torch.testing.assert_close(waves.frequencies[[0, -1]], torch.tensor([0.1, 2.0]).double())
    with pytest.raises(ValueError, match="even"):
        Waves(7, 0.1, 2.0)
    with pytest.raises(ValueError, match="low <= high"):
        Waves(8, 3.0, 2.0)


@pytest.mark.parametrize("case", ["mlp-digits", "unet-32"])
def test_labels(case):
    name, config, shape = CASES[case]
    net, (x, condition) = awake(name, config), batch(4, shape)
    with torch.no_grad():
        none = net(x, condition)
        last = net(x, condition, torch.full((4,), config["classes"]))
        zero, one = net(x, condition, torch.zeros(4).long()), net(x, condition, torch.ones(4).long())
        mixed = net(x, condition, torch.tensor([0, 1, 3, 3]))
    assert torch.equal(none, last)
    assert (zero - one).abs().max() > 1e-3
    assert (zero - none).abs().max() > 1e-3
    torch.testing.assert_close(mixed, torch.stack([zero[0], one[1], none[2], none[3]]), atol=1e-5, rtol=0)


def test_labels_to_a_network_without_classes_are_refused():
    with pytest.raises(ValueError, match="build it with classes"):
        MLP((2,), 16, 1)(torch.zeros(2, 2), torch.zeros(2), torch.zeros(2).long())


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"samples of shape \(2,\)"):
        MLP((2,), 16, 1)(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="one number a sample"):
        MLP((2,), 16, 1)(torch.zeros(2, 2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="takes images"):
        UNet(width=8)(torch.zeros(2, 3, 8, 8), torch.zeros(2))
    with pytest.raises(ValueError, match="divisible by 2"):
        UNet(width=8, patch=2)(torch.zeros(2, 1, 7, 7), torch.zeros(2))
    with pytest.raises(ValueError, match="level 2 does not exist"):
        UNet(width=8, attention=(2,))
    with pytest.raises(ValueError, match="3 heads do not divide"):
        UNet(width=8, attention=(0,), heads=3)


def test_unknown_network_names_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean 'unet'\?.*mlp, unet"):
        build("u-net", {})
    assert set(NETWORKS) == {"mlp", "unet"}
