"""The autoencoder: shapes, the terms of its regularisers against closed forms, and that it learns."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from sdediff import Training, UserError, fit
from sdediff.chance import Chance
from sdediff.checkpoint import load_autoencoder, load_model, read, save_autoencoder
from sdediff.data import digits
from sdediff.networks import Autoencoder, build
from sdediff.networks.autoencoder import divergence, look_up, nearest, through
from sdediff.tasks import AutoencoderTask

KINDS = ("kl", "vq", "none")
CHANCE = Chance(seed=0, step=3, first=0, n=4, total=4)


def small(regulariser="kl", channels=1, multipliers=(1, 2), **options) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(channels, 8, multipliers, latent=2, regulariser=regulariser, codes=32, **options)


def images(n=4, channels=1, size=(8, 8)) -> torch.Tensor:
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("multipliers", "size"), [((1,), (8, 8)), ((1, 2), (8, 12)), ((1, 2, 2), (28, 28))], ids=str)
def test_shapes(kind, multipliers, size):
    net, x = small(kind, 3, multipliers), images(3, 3, size)
    f = 2 ** (len(multipliers) - 1)
    z = net.encode(x)
    assert net.factor == f
    assert z.shape == (3, *net.latent_shape(x.shape[1:])) == (3, 2, size[0] // f, size[1] // f)
    assert net.decode(z).shape == x.shape
    back = net(x)
    assert torch.equal(back.x, net.decode(z))  # the deterministic code is the mean
    assert back.kl.shape == back.codebook.shape == (3,)
    assert bool((back.kl > 0).all()) == (kind == "kl")
    assert bool((back.codebook > 0).all()) == (kind == "vq")
    again = build("autoencoder", json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x).x, back.x)


def test_each_sample_is_by_itself():
    for kind in KINDS:
        net, x = small(kind), images(5)
        whole, alone = net(x), [net(x[i : i + 1]) for i in range(5)]
        for name in ("x", "kl", "codebook"):
            torch.testing.assert_close(getattr(whole, name), torch.cat([getattr(a, name) for a in alone]), atol=1e-5, rtol=1e-5)


# --- regularisers -----------------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_two_normals():
    mean, log_std = torch.randn(5, 2, 3, 4), torch.randn(5, 2, 3, 4)
    ours = divergence(mean, log_std)
    p, q = Normal(mean, log_std.exp()), Normal(torch.zeros_like(mean), 1.0)
    torch.testing.assert_close(ours, kl_divergence(Independent(p, 3), Independent(q, 3)))
    net, x = small(), images()
    torch.testing.assert_close(net(x).kl, divergence(*net.moments(x)))


def test_the_code_is_drawn_with_the_noise_given():
    net, x = small(), images()
    mean, log_std = net.moments(x)
    noise = torch.randn_like(mean)
    torch.testing.assert_close(net(x, noise).x, net.decode(mean + log_std.exp() * noise))
    state = torch.get_rng_state()
    assert torch.equal(net(x).x, net(x).x)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_nearest_code_with_a_gradient_straight_through():
    net = small("vq")
    assert net.codebook is not None
    z = torch.randn(3, 2, 4, 5, requires_grad=True)
    near = nearest(net.codebook, z)
    distances = (z.detach()[:, None] - net.codebook.detach()[None, :, :, None, None]).square().sum(2)  # (n, codes, h, w)
    assert torch.equal(near, distances.argmin(1))
    quantised = through(z, look_up(net.codebook, near))
    assert torch.equal(quantised, look_up(net.codebook, near))  # to the bit
    weight = torch.randn_like(z)
    (quantised * weight).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, weight)
    assert net.codebook.grad is None
    with torch.no_grad():
        assert torch.equal(net.decode(z), net.decode(look_up(net.codebook, near)))


def test_the_codebook_s_terms():
    """A code in use goes to the data, the data a quarter as fast to it, and a code in no use to the nearest of the data."""
    net = small("vq")
    assert net.codebook is not None
    with torch.no_grad():
        net.codebook.fill_(100.0)
        net.codebook[0] = torch.tensor([1.0, 0.0])
    z = torch.zeros(1, 2, 2, 2, requires_grad=True)
    with torch.no_grad():
        z[0, :, 0, 0] = 2.0
    loss = net._of_codebook(net.codebook, z)
    own = (3 * 1.0 + (1 + 4)) / 8  # means over 2 channels at 4 places
    dead = (31 * 2 * 98.0**2 + 1) / 64
    torch.testing.assert_close(loss, torch.tensor([1.25 * own + 0.01 * dead]))
    loss.sum().backward()
    book = net.codebook.grad
    assert book is not None
    assert z.grad is not None
    assert bool((book[1:] > 0).all())  # downhill is towards the data
    torch.testing.assert_close(z.grad[0, :, 0, 1], 0.25 * 2 / 8 * torch.tensor([-1.0, 0.0]))


# --- what is learned --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"), [("kl", {}), ("vq", {"norm": "l2"}), ("none", {}), ("kl", {"norm": "gaussian", "kl_weight": 1.0})], ids=str
)
def test_the_loss_falls(kind, options, tmp_path):
    vae = options.get("norm") == "gaussian"
    net = small(kind, learned_sigma=vae, sigma=0.3 if vae else 1.0)
    x = digits().x[:512]
    losses = [
        float(p.loss) for p in fit(AutoencoderTask(net, **options), x, Training(steps=50, batch=32, lr=4e-3, warmup=5), folder=tmp_path)
    ]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    with torch.no_grad():
        assert float((net(x).x - x).square().mean()) < 0.6 * float(x.var())
    again = load_autoencoder(tmp_path / "model.safetensors")
    assert not again.training
    assert torch.equal(again.decode(again.encode(x)), net.decode(net.encode(x)))
    assert read(tmp_path / "model.safetensors")[1]["learned"]["norm"] == options.get("norm", "l1")


@pytest.mark.parametrize("norm", ["l1", "l2", "gaussian"])
def test_the_loss_is_what_it_says(norm):
    net, x = small(sigma=0.3), images()
    loss = AutoencoderTask(net, norm, kl_weight=0.7).loss(net, x, None, CHANCE, None)
    mean, log_std = net.moments(x)
    back = net.decode(mean + log_std.exp() * CHANCE.noise(mean))
    off = {
        "l1": (back - x).abs().sum((1, 2, 3)),
        "l2": (back - x).square().sum((1, 2, 3)),
        "gaussian": -Normal(back, 0.3).log_prob(x).sum((1, 2, 3)),
    }[norm]
    torch.testing.assert_close(64 * loss, off + 0.7 * divergence(mean, log_std))


def test_a_vae_learns_the_deviation_of_its_decoder():
    """The best sigma is the root mean square of what is lost."""
    net = small(sigma=0.9, learned_sigma=True)
    with torch.no_grad():
        square = float((net(images()).x - images()).square().mean())
    net.requires_grad_(False)
    net.log_sigma.requires_grad_(True)
    optimiser = torch.optim.LBFGS([net.log_sigma], max_iter=50)
    task = AutoencoderTask(net, "gaussian", kl_weight=0.0)

    def closure():
        optimiser.zero_grad()
        value = task._off(net(images()).x - images(), net.log_sigma).mean()
        value.backward()
        return value

    optimiser.step(closure)
    assert float(net.log_sigma.detach().exp()) == pytest.approx(math.sqrt(square), rel=1e-3)


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    def run(stop):
        net = small("vq")
        for progress in fit(AutoencoderTask(net), digits().x[:64], Training(steps=6, batch=16), folder=tmp_path / str(stop), save_every=1):
            if progress.step == stop:
                break
        return net

    run(3)
    again = small("vq")
    list(fit(AutoencoderTask(again), digits().x[:64], Training(steps=6, batch=16), folder=tmp_path / "3", save_every=1))
    whole = run(None)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(UserError, match="other settings"):
        list(fit(AutoencoderTask(again, "l2"), digits().x[:64], Training(steps=6, batch=16), folder=tmp_path / "3"))


def test_bf16():
    net = small("kl")
    task = AutoencoderTask(net)
    losses = [float(p.loss) for p in fit(task, digits().x[:256], Training(steps=30, batch=32, lr=4e-3, warmup=5, precision="bf16"))]
    assert losses[-1] < 0.7 * losses[0]


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"regulariser": "KL"}, "'kl', 'vq', 'none'"),
        ({"latent": 0}, "latent=0"),
        ({"multipliers": ()}, "levels=0"),
        ({"sigma": 0.0}, "sigma=0.0"),
        ({"sigma": math.nan}, "sigma=nan"),
    ],
    ids=str,
)
def test_impossible_autoencoders_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Autoencoder(**options)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 7, 8), (2, 1, 8, 9), (2, 8, 8), (2, 1, 0, 0)], ids=str)
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(n, 1, H, W\) with sides divisible by 2"):
        small().encode(torch.zeros(shape))
    if len(shape) == 4 and shape[2]:
        with pytest.raises(UserError, match="divisible by 2"):
            list(fit(AutoencoderTask(small()), torch.zeros(shape), Training(steps=1, batch=2)))


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"decodes \(n, 2, h, w\)"):
        small().decode(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("options", [{"norm": "l3"}, {"kl_weight": -1.0}, {"kl_weight": math.nan}, {"codebook_weight": math.inf}], ids=str)
def test_impossible_tasks_are_refused(options):
    with pytest.raises(UserError):
        AutoencoderTask(small(), **options)


def test_what_is_no_autoencoder_is_refused(tmp_path):
    with pytest.raises(UserError, match="Linear"):
        AutoencoderTask(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="learned_sigma"):
        AutoencoderTask(small(learned_sigma=True))
    save_autoencoder(tmp_path / "a", small())
    with pytest.raises(UserError, match="an autoencoder alone"):
        load_model(tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-100])
    with pytest.raises(UserError, match="damaged"):
        load_autoencoder(tmp_path / "cut")
