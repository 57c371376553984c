"""The classifier, its recipe, and the committed weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sdediff.data import DataError, Dataset, digits, mnist
from sdediff.metrics import frechet_distance, moments, noise_floor
from sdediff.networks.classifier import Classifier
from sdediff.pretrained import classifier_path, feature_extractor, load_classifier
from sdediff.pretrained.classifiers import RECIPES, accuracy, held_out, shifted, splits, train_classifier, write
from sdediff.pretrained.reference import measured, reference


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 13)])
def test_shapes_config_and_independence_of_the_batch(channels: int, size: int) -> None:
    net = Classifier(channels, size, width=4, features=12, classes=7)
    x = torch.rand(5, channels, size, size) * 2 - 1
    assert net(x).shape == (5, 7)
    assert net.features(x).shape == (5, 12)
    torch.testing.assert_close(net(x), net.head(net.features(x)))
    alone = torch.cat([net.train()(one[None]) for one in x])
    torch.testing.assert_close(net.train()(x), alone)
    again = Classifier(**json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))


def test_features_see_the_contrast() -> None:
    net = feature_extractor("digits")
    x = digits().x[:5]
    assert (net.features(x) - net.features(x * 0.8 - 0.2)).abs().max() > 0.1


def test_wrong_shapes_and_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 9, 8\); expected \(n, 1, 8, 8\)"):
        Classifier(size=8).features(torch.zeros(2, 1, 9, 8))
    with pytest.raises(ValueError, match="width=0"):
        Classifier(width=0)


@pytest.mark.parametrize(("name", "features", "limit"), [("digits", 32, 0.5e6), ("mnist", 64, 2e6)])
def test_committed_weights_say_what_they_are(name: str, features: int, limit: float) -> None:
    net = feature_extractor(name)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert net.config == RECIPES[name].config
    assert net.config["features"] == features
    assert classifier_path(name).stat().st_size < limit
    with safe_open(classifier_path(name), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["recipe"] == f"python -m sdediff.pretrained.classifiers {name}"
    assert float(metadata["accuracy"]) >= {"digits": 0.98, "mnist": 0.99}[name]
    x = torch.zeros(1, 1, net.config["size"], net.config["size"], requires_grad=True)
    assert net(x).sum().requires_grad  # classifier guidance differentiates through it


def test_digits_weights_reach_their_accuracy_on_the_held_out_fifth() -> None:
    train, test, _ = splits("digits")
    with safe_open(classifier_path("digits"), framework="pt") as file:
        claimed = float(file.metadata()["accuracy"])
    assert accuracy(feature_extractor("digits"), test) == pytest.approx(claimed, abs=0.003)  # one image
    assert (len(train.x), len(test.x)) == (1438, 359)
    seen = {tuple(row) for row in train.x.flatten(1).tolist()}
    assert not any(tuple(row) in seen for row in test.x.flatten(1).tolist())


def test_mnist_weights_reach_their_accuracy_on_test_images(mnist_folder: Path) -> None:
    test = mnist(mnist_folder, "test")
    assert test.labels is not None
    part = test._replace(x=test.x[:5000:2], labels=test.labels[:5000:2])  # the first half is the harder one
    assert accuracy(feature_extractor("mnist"), part) >= 0.985


def test_digits_features_tell_noise_from_the_noise_floor() -> None:
    x, net = digits().x, feature_extractor("digits")
    floor, spread = noise_floor(net.features(x))
    real = moments(net.features(x))
    noisy = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert 0.3 < floor < 2
    assert spread < floor
    assert frechet_distance(net.features(noisy), real) > floor
    assert frechet_distance(net.features(torch.zeros_like(x)), real) > 20 * floor


def test_feature_extractor_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'digits'"):
        feature_extractor("digit")
    with pytest.raises(FileNotFoundError, match=r"python -m sdediff\.pretrained\.classifiers"):
        load_classifier(tmp_path / "absent")


def test_recipe_learns_and_is_a_function_of_its_arguments() -> None:
    train, test, _ = splits("digits")
    config = {"channels": 1, "size": 8, "width": 4, "features": 16, "classes": 10}
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, reached = train_classifier(train, test, config, steps=200, batch=32, lr=5e-3, shift=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert 0.75 < reached < 1
    torch.manual_seed(2)
    second, _ = train_classifier(train, test, config, steps=200, batch=32, lr=5e-3, shift=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other, _ = train_classifier(train, test, config, steps=1, batch=32, lr=5e-3, shift=1, seed=1)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_written_file_holds_the_trained_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "digits", RECIPES["digits"]._replace(steps=40))
    lines: list[str] = []
    found = write("digits", tmp_path / "new.safetensors", lines.append)
    assert len(lines) == 10
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {"config", "accuracy", "split", "recipe"}
    assert f"{found:.4f}" == metadata["accuracy"]
    assert found > 0.3  # 40 steps: far from chance


def test_shifts_move_whole_pixels_and_fill_with_background() -> None:
    x = torch.full((200, 2, 5, 4), -1.0)
    x[:, 0, 2, 1], x[:, 1, 2, 1] = 0.25, 0.75
    generator = torch.Generator().manual_seed(0)
    moved = shifted(x, 1, generator)
    assert moved.shape == x.shape
    for channel, value in ((0, 0.25), (1, 0.75)):
        found = (moved[:, channel] == value).nonzero()
        assert found[:, 0].tolist() == list(range(200))  # one in each image
        assert {tuple(p) for p in found[:, 1:].tolist()} == {(r, c) for r in (1, 2, 3) for c in (0, 1, 2)}
    assert torch.equal((moved[:, 0] == 0.25), (moved[:, 1] == 0.75))
    assert int((moved == -1).sum()) == moved.numel() - 400
    assert shifted(x, 0, generator) is x


def test_held_out_parts_are_disjoint_and_labelled_alike() -> None:
    data = Dataset(torch.arange(50.0)[:, None, None, None], torch.arange(50), "fifty")
    train, test = held_out(data, 0.2, seed=3)
    assert (len(train.x), len(test.x)) == (40, 10)
    for part in (train, test):
        assert part.labels is not None
        assert part.x.flatten().tolist() == part.labels.tolist()
    assert sorted(train.x.flatten().tolist() + test.x.flatten().tolist()) == list(range(50))
    assert held_out(data, 0.2, seed=4)[1].x.tolist() != test.x.tolist()
    with pytest.raises(DataError, match="no labels"):
        train_classifier(train._replace(labels=None), test, {}, steps=1, batch=1, lr=1e-3, shift=0)


def test_command_line_names_the_recipes() -> None:
    command = [sys.executable, "-m", "sdediff.pretrained.classifiers", "cifar"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "digits" in done.stderr
    assert "mnist" in done.stderr
    assert "RuntimeWarning" not in done.stderr


@pytest.mark.parametrize("name", ["digits", pytest.param("mnist", marks=pytest.mark.slow)])
def test_reference_statistics_are_those_of_the_data(name, request):
    if name == "mnist":
        request.getfixturevalue("real_data")
    known, found = reference(name), measured(name)
    assert known.n == found.n == {"digits": 1797, "mnist": 60000}[name]
    torch.testing.assert_close(known.mean, found.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(known.cov, found.cov, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="no reference statistics of 'minst'"):
        reference("minst")
