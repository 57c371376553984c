"""Networks: shapes, independence of rows, smoothness in the condition, labels, the way back from a config, memory, compilation."""

import hashlib
import json
import math
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdediff.checkpoint import load_model
from sdediff.networks import MLP, NETWORKS, DiT, NoisyClassifier, UNet, Waves, build
from sdediff.networks.blocks import ResBlock, halved
from sdediff.recipe import Recipe

CASES = {
    "mlp-plane": ("mlp", {"shape": (2,), "width": 32, "depth": 2}, (2,)),
    "mlp-digits": ("mlp", {"shape": (1, 8, 8), "width": 48, "depth": 2, "classes": 3}, (1, 8, 8)),
    "unet-8": ("unet", {"width": 8, "multipliers": (1, 2)}, (1, 8, 8)),
    "unet-28": ("unet", {"width": 8, "multipliers": (1, 2, 2), "attention": (2,), "heads": 2}, (1, 28, 28)),
    "unet-28-odd": ("unet", {"width": 8, "multipliers": (1, 1, 1, 2), "groups": 3}, (1, 28, 28)),
    "unet-32": ("unet", {"channels": 3, "width": 8, "blocks": 2, "dropout": 0.1, "classes": 3}, (3, 32, 32)),
    "unet-patch": ("unet", {"width": 8, "multipliers": (1, 2), "patch": 2, "classes": 3}, (1, 8, 8)),
    "unet-one-level": ("unet", {"width": 8, "multipliers": (1,), "attention": (0,)}, (1, 8, 8)),
    "unet-ddpm": ("unet", {"width": 8, "scale_shift": False, "middle_attention": True, "zero": True, "features": 8}, (1, 8, 8)),
    "unet-adm": (
        "unet",
        {
            "width": 8,
            "multipliers": (0.5, 1, 2),
            "attention": (1, 2),
            "head_channels": 4,
            "resample": "block",
            "classes": 3,
            "variance": True,
        },
        (1, 7, 10),
    ),
    "unet-pool": ("unet", {"channels": 2, "width": 8, "multipliers": (1, 1, 2), "resample": "pool"}, (2, 9, 6)),
    "dit": ("dit", {"channels": 2, "width": 16, "depth": 2, "heads": 2, "classes": 3}, (2, 8, 8)),
    "dit-oblong": ("dit", {"patch": 3, "width": 16, "depth": 2, "heads": 4, "variance": True}, (1, 6, 12)),
    "mlp-variance": ("mlp", {"shape": (2, 3, 4), "width": 32, "depth": 1, "variance": True}, (2, 3, 4)),
    "noisy": ("noisy_classifier", {"size": 8, "width": 8, "attention": (1,), "heads": 2, "classes": 4}, (1, 8, 8)),
    "noisy-mean": ("noisy_classifier", {"size": (8, 12), "width": 8, "patch": 2, "pool": "mean", "resample": "conv"}, (1, 8, 12)),
}
EACH = pytest.mark.parametrize(("name", "config", "shape"), CASES.values(), ids=CASES.keys())


def awake(name: str, config: dict) -> MLP | UNet | DiT | NoisyClassifier:
    """A network in evaluation mode in which nothing is zero any more, as after some training."""
    torch.manual_seed(0)
    net = build(name, config).eval()
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    if isinstance(net, DiT):  # begins with a whisper
        for parameter in net.embed.parameters():
            nn.init.normal_(parameter, std=0.3)
    return net


def batch(n: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, *shape, generator=generator), torch.linspace(-5, 7, n)


def answer(name: str, config: dict, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one answer."""
    if name == "noisy_classifier":
        return (config.get("classes", 10),)
    return ((1 + config.get("variance", False)) * shape[0], *shape[1:])


def told(name: str, config: dict, n: int) -> tuple[Tensor, ...]:
    """Labels of every kind, "no label" too, for a network that takes labels."""
    if name == "noisy_classifier" or config.get("classes") is None:
        return ()
    return (torch.arange(n) % (config["classes"] + 1),)


@EACH
def test_answer_has_the_shape_of_x_and_a_fresh_network_answers_zero(name, config, shape):
    x, condition = batch(3, shape)
    assert awake(name, config)(x, condition).shape == (3, *answer(name, config, shape))
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
        assert (net(x, torch.full((4,), -2.0)) - net(x, torch.full((4,), 2.0))).abs().max() > 1e-3


@EACH
def test_one_condition_for_all_is_that_condition_in_every_row(name, config, shape):
    net, (x, _), labels, seen = awake(name, config), batch(4, shape), told(name, config, 4), []
    net.embed.mix.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    with torch.no_grad():
        one, many = net(x, torch.full((1,), 1.5), *labels), net(x, torch.full((4,), 1.5), *labels)
        expanded = net(x, torch.full((1,), 1.5).expand(4), *labels)
    torch.testing.assert_close(one, many, atol=1e-5, rtol=0)
    assert torch.equal(one, expanded)
    assert seen == [1, 4, 1]


@EACH
def test_config_and_state_bring_the_same_network_back(name, config, shape):
    net, (x, condition) = awake(name, config), batch(3, shape)
    again = build(name, json.loads(json.dumps(net.config))).eval()
    again.load_state_dict(net.state_dict())
    assert again.config == net.config
    assert torch.equal(again(x, condition), net(x, condition))


@EACH
def test_gradient_reaches_every_parameter_after_the_first_steps(name, config, shape):
    torch.manual_seed(0)
    net = build(name, config)
    x, condition = batch(8, shape)
    target = torch.randn(8, *answer(name, config, shape))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(4):  # what lies behind three zeros hears of it in the fourth step
        optimiser.zero_grad()
        (net(x, condition, *told(name, config, 8)) - target).square().mean().backward()
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


@pytest.mark.parametrize("case", ["mlp-digits", "unet-32", "unet-adm", "dit"])
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


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 8, 12)])
def test_a_recipe_fills_in_the_size_of_images_that_are_not_square(shape):
    source = SimpleNamespace(name="images", shape=shape, classes=2)
    recipe = Recipe("r", kind="classifier", network={"name": "noisy_classifier", "width": 8}, training={"steps": 1})
    assert recipe._network(source)(torch.zeros(2, *shape), torch.zeros(2)).shape == (2, 2)


def test_wrong_switches_are_refused():
    with pytest.raises(ValueError, match="heads of 3 channels do not divide the 16 channels of level 1"):
        UNet(width=8, attention=(1,), head_channels=3)
    with pytest.raises(ValueError, match="3 heads do not divide the 16 channels of level 1"):
        UNet(width=8, middle_attention=True, heads=3)
    with pytest.raises(ValueError, match="resample is one of 'conv', 'pool', 'block', not 'stride'"):
        UNet(width=8, resample="stride")
    with pytest.raises(ValueError, match="multiple of the 5 heads"):
        DiT(width=64, heads=5)
    with pytest.raises(ValueError, match="divisible by 2"):
        DiT(patch=2)(torch.zeros(2, 1, 7, 8), torch.zeros(2))
    with pytest.raises(ValueError, match="pool is one of"):
        NoisyClassifier(pool="max")
    with pytest.raises(ValueError, match="images of 8x8, got 8x10"):
        NoisyClassifier(size=8, width=8)(torch.zeros(2, 1, 8, 10), torch.zeros(2))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((n, o, 0) for n in ("unet", "noisy_classifier") for o in ("heads", "groups", "blocks", "patch", "width", "channels", "classes")),
        *((n, "multipliers", v) for n in ("unet", "noisy_classifier", "autoencoder") for v in ((), (0, 1), (-1, 1))),
        *(("autoencoder", o, 0) for o in ("groups", "blocks", "width", "latent", "sigma")),
        *(("dit", o, 0) for o in ("heads", "patch", "width", "channels", "classes", "expansion")),
        *(("mlp", o, 0) for o in ("width", "embedding", "classes", "expansion")),
        ("mlp", "shape", (0, 2)),
        ("autoencoder", "multipliers", (0.5, 1)),
        ("unet", "width", 8.5),
        ("unet", "head_channels", 0),
        ("unet", "embedding", 0),
        ("noisy_classifier", "size", (8, 0)),
    ],
)
def test_impossible_sizes_end_in_a_sentence(name, option, value):
    given = {"shape": (2,)} if name == "mlp" else {}
    with pytest.raises(ValueError, match=rf"^{NETWORKS[name].__name__}\(.*=.*\): expected (a whole|a positive|at least)"):
        build(name, {**given, option: value})


@pytest.mark.parametrize("case", ["mlp-digits", "unet-32", "dit"])
def test_labels_out_of_range_end_in_a_sentence(case):
    name, config, shape = CASES[case]
    net, (x, condition) = build(name, config), batch(2, shape)
    for wrong in (-1, 4, 1000):
        with pytest.raises(
            ValueError, match=f"label {wrong} is out of range for 3 classes.*from 0 to 2, and 3 means no label.*Count them from 0"
        ):
            net(x, condition, torch.tensor([0, wrong]))
    with pytest.raises(ValueError, match="whole numbers"):
        net(x, condition, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"shape \(n,\); got \(2, 1\)"):
        net(x, condition, torch.tensor([[0], [1]]))
    assert net(x, condition, torch.tensor([0, 3], dtype=torch.int32)).shape == x.shape


def test_unknown_network_or_argument_names_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean 'unet'\? There are: .*dit, mlp, noisy_classifier, unet"):
        build("u-net", {})
    with pytest.raises(ValueError, match=r"DiT has no argument 'widht'; did you mean 'width'\?.*channels, classes, depth"):
        build("dit", {"widht": 3})
    assert set(NETWORKS) >= {"mlp", "unet", "dit", "noisy_classifier"}


# --- what was there before stays ----------------------------------------------------------------------------------

# Before there were switches. A case; then a digest of the names in its state, and of the answer below its sum, norm, first number.
BEFORE = {
    "mnist": (
        ("unet", {"width": 16, "attention": (1,), "heads": 4, "patch": 2, "classes": 10}, (1, 28, 28)),
        ("7f8617222182", 303.01670780207377, 437.1943563621071, -7.022027685057792),
    ),
    "default": (("unet", {}, (1, 8, 8)), ("7aae35f77b2e", 54.27054524868301, 157.4445718424122, -10.188141794153168)),
    "three": (
        (
            "unet",
            {"channels": 3, "width": 16, "multipliers": (1, 2, 2), "blocks": 2, "attention": (1, 2), "heads": 2, "classes": 3, "groups": 4},
            (3, 20, 12),
        ),
        ("6945cbe6615b", -197.0470697845772, 351.09597248174765, -6.443383370885869),
    ),
    "mlp": (
        ("mlp", {"shape": (1, 8, 8), "width": 48, "depth": 2, "classes": 3}, (1, 8, 8)),
        ("c56993812c39", 48.11532540864937, 372.95705597315276, -15.811571436443035),
    ),
}
OLD = {
    "unet": "channels width multipliers blocks attention heads groups dropout patch embedding features low high classes",
    "mlp": "shape width depth expansion embedding features low high dropout classes",
}


def known(*shape: int) -> Tensor:
    """Numbers in [-1, 1] that no generator draws."""
    return (0.7 * torch.arange(math.prod(shape), dtype=torch.float64)).sin().reshape(shape)


@pytest.mark.parametrize(("case", "were"), BEFORE.values(), ids=BEFORE.keys())
def test_default_networks_begin_and_answer_as_they_did_before(case, were):
    name, config, shape = case
    torch.manual_seed(0)
    net = build(name, config).double()
    names, total, norm, first = were
    assert list(net.config) == OLD[name].split()
    assert hashlib.sha256(" ".join(net.state_dict()).encode()).hexdigest()[:12] == names
    with torch.no_grad():
        net.leave.weight.copy_(known(*net.leave.weight.shape))
        given = net(known(5, *shape), torch.linspace(-5, 7, 5, dtype=torch.float64), *told(name, config, 5))
    assert (float(given.sum()), float(given.norm()), float(given.flatten()[0])) == pytest.approx((total, norm, first), rel=1e-5)


def test_pretrained_weights_answer_as_they_did_before():
    model = load_model(ROOT / "sdediff" / "pretrained" / "digits.safetensors")
    net = model.net.double()
    with torch.no_grad():
        given = net(known(4, *model.shape), torch.linspace(-3, 3, 4, dtype=torch.float64))
    assert (float(given.sum()), float(given.norm()), float(given.flatten()[0])) == pytest.approx(
        (82.45142896950145, 16.855895353563856, 0.9985973962117657), rel=1e-10
    )


# --- the switches -------------------------------------------------------------------------------------------------


def test_a_config_names_only_the_switches_used():
    net = build("unet", CASES["unet-adm"][1])
    assert set(net.config) - set(OLD["unet"].split()) == {"variance", "resample", "head_channels"}


def test_waves_are_those_of_ddpm_at_its_indices():
    waves, index = Waves(8, 1e-4, 1.0).double(), torch.tensor([0, 1, 999])
    angles = index[:, None].double() * 1e4 ** (-torch.arange(4).double() / 3)
    torch.testing.assert_close(waves(index), torch.cat([angles.flip(1).cos(), angles.flip(1).sin()], dim=1), atol=2e-5, rtol=0)


def test_the_embedding_scales_and_shifts_or_is_added():
    """At a block whose convolutions are the identity, from its formula."""
    h, embedding = known(2, 4, 3, 3).float(), known(2, 5).float()
    for scale_shift in (True, False):
        block = ResBlock(4, 4, 5, groups=2, dropout=0.0, scale_shift=scale_shift)
        for conv in (block.first, block.second):
            nn.init.dirac_(conv.weight)
            nn.init.zeros_(conv.bias)
        inner, said = nn.functional.silu(nn.functional.group_norm(h, 2)), block.adapt(embedding)[:, :, None, None]
        if scale_shift:
            inner = nn.functional.group_norm(inner, 2) * (1 + said[:, :4]) + said[:, 4:]
        else:
            inner = nn.functional.group_norm(inner + said, 2)
        torch.testing.assert_close(block(h, embedding), h + nn.functional.silu(inner))


def test_a_zero_block_begins_as_its_skip_and_resizes_both_ways():
    block = ResBlock(4, 4, 5, groups=2, dropout=0.0, zero=True)
    h = known(2, 4, 7, 6).float()
    assert torch.equal(block(h, torch.ones(1, 5)), h)
    small = block(h, torch.ones(1, 5), halved)
    assert small.shape == (2, 4, 4, 3)
    torch.testing.assert_close(small[..., 0, 0], h[..., :2, :2].mean((-1, -2)))
    torch.testing.assert_close(small[..., 3, 0], h[..., 6, :2].mean(-1))


def test_heads_by_number_or_by_channels():
    assert UNet(width=8, attention=(1,), heads=4).down[1].attention.heads == 4
    assert UNet(width=8, attention=(1,), heads=4, head_channels=2).down[1].attention.heads == 8
    assert NoisyClassifier(width=8, head_channels=2).pool.heads == 8


def test_blocks_of_a_transformer_begin_as_the_identity():
    h, embedding = known(2, 6, 16).float(), known(2, 16).float()
    assert all(torch.equal(block(h, embedding), h) for block in DiT(width=16, heads=2).blocks)


def test_positions_of_a_transformer_tell_columns_from_rows():
    net = DiT(width=16, heads=2)
    positions = net.positions(3, 5).reshape(3, 5, 16)
    assert torch.equal(positions[0, 2, :8], positions[2, 2, :8])  # of the column
    assert torch.equal(positions[1, 0, 8:], positions[1, 4, 8:])  # of the row
    assert positions[1, 2, 0] == pytest.approx(math.sin(2))
    assert positions[1, 2, 8 + 4 + 1] == pytest.approx(math.cos(1e4**-0.25))
    assert len(positions.flatten(0, 1).unique(dim=0)) == 15


def test_patches_come_back_to_their_places():
    """A pixel reaches its own patch alone where there is no attention between patches."""
    net = awake("dit", {"patch": 2, "width": 16, "depth": 0, "heads": 2})
    x, condition = batch(1, (1, 6, 8))
    changed = x.clone()
    changed[0, 0, 3, 5] += 1
    with torch.no_grad():
        moved = (net(x, condition) - net(changed, condition))[0, 0] != 0
    assert moved.nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


# --- memory -------------------------------------------------------------------------------------------------------


class Alive(TorchDispatchMode):
    """Bytes of the tensors made inside that are alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key, size):
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize(
    ("name", "config", "share"),
    [
        ("unet", {"width": 16, "multipliers": (1, 2), "blocks": 2, "attention": (1,), "dropout": 0.2, "classes": 3}, 0.6),
        ("unet", {"width": 16, "multipliers": (1, 2), "blocks": 2, "resample": "block", "scale_shift": False}, 0.6),
        ("dit", {"width": 32, "depth": 8, "classes": 3}, 0.4),
        ("noisy_classifier", {"size": 16, "width": 16, "blocks": 3}, 0.7),
    ],
    ids=["unet", "unet-block", "dit", "noisy"],
)
def test_checkpointing_keeps_less_and_changes_no_bit(name, config, share):
    net = awake(name, config).train()
    x, condition = batch(4, (1, 16, 16))
    state, found = set(net.state_dict()), []
    for net.checkpointing in (False, True):
        torch.manual_seed(3)
        net.zero_grad()
        with Alive() as alive:
            given = net(x, condition, *told(name, config, 4))
            given.square().mean().backward()
        found.append((given.detach(), [p.grad.clone() for p in net.parameters()], alive.most))
    (plain, grads, most), (again, grads_again, less) = found
    assert torch.equal(plain, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))
    assert less < share * most
    assert set(net.state_dict()) == state
    assert "checkpointing" not in net.config


# --- compilation --------------------------------------------------------------------------------------------------

COMPILED = ["unet-patch", "dit", "unet-adm", "noisy"]


@pytest.mark.parametrize(
    "case", ["dit", "unet-one-level", *(pytest.param(case, marks=pytest.mark.slow) for case in COMPILED if case != "dit")]
)
def test_torch_compile_traces_the_whole_network(case):
    name, config, shape = CASES[case]
    net, (x, condition), labels = awake(name, config), batch(3, shape), told(name, config, 3)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        for given in (condition, torch.full((1,), 0.3).expand(3)):
            assert torch.equal(compiled(x, given, *labels), net(x, given, *labels))
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "backend"), [*((case, "aot_eager") for case in COMPILED), ("unet-patch", "inductor"), ("dit", "inductor")]
)
def test_compiled_networks_answer_and_learn_as_they_do(case, backend):
    name, config, shape = CASES[case]
    net, (x, condition), labels = awake(name, config), batch(3, shape), told(name, config, 3)
    net.checkpointing = backend == "aot_eager"
    compiled, found = torch.compile(net, backend=backend, fullgraph=True), []
    for run in (net, compiled):
        net.zero_grad()
        given = run(x, condition, *labels)
        given.square().mean().backward()
        found.append((given.detach(), [p.grad.clone() for p in net.parameters()]))
    torch._dynamo.reset()
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)
