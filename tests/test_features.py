"""Extractors by name and by object, reference statistics and their files, and what is refused: one sentence each."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from sdediff.cli.statistics import statistics
from sdediff.data import DataError, InMemory, open_source
from sdediff.features import NAMES, Extractor, FeatureWarning, Reference, extractor, load_reference, reference_statistics
from sdediff.metrics import MetricError, frechet_distance, moments
from sdediff.names import UserError
from sdediff.networks import Classifier, Inception
from sdediff.pretrained import feature_extractor
from sdediff.pretrained.reference import reference


@pytest.fixture(scope="module")
def judge() -> Extractor:
    return extractor("digits")


@pytest.fixture(scope="module")
def real(judge: Extractor) -> Reference:
    return reference_statistics(judge, open_source("digits"))


def images(n: int, channels: int = 1, side: int = 8, seed: int = 0) -> Tensor:
    return 2 * torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed)) - 1


class Own(nn.Module):
    """A user's network, with a layer that behaves otherwise in training mode."""

    def __init__(self, d: int = 5) -> None:
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(64, d), nn.BatchNorm1d(d), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.linear(x.flatten(1))))


def brightness(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1, keepdim=True)


# --- extractors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_our_classifiers_by_name(name: str):
    made, net = extractor(name), feature_extractor(name)
    x = images(3, 1, net.config["size"])
    features, logits = made.both(x)
    assert torch.equal(features, net.features(x))
    assert logits is not None
    assert torch.equal(logits, net(x))
    assert made.d == features.shape[1]
    assert made.mark == extractor(name).mark == extractor(net).mark
    assert made.name == name


def test_marks_differ_by_weights_name_and_options():
    torch.manual_seed(1)
    own = Own()
    other = Own()
    marks = [extractor(e).mark for e in ("digits", "mnist", "pixels", own, other, brightness, images)]
    assert len(set(marks)) == len(marks)
    assert all(len(m) == 16 and int(m, 16) >= 0 for m in marks)
    copy = Own()
    copy.load_state_dict(own.state_dict())
    assert extractor(copy).mark == extractor(own).mark
    assert own.norm.num_batches_tracked is not None
    own.norm.num_batches_tracked.add_(1)  # it counts, and changes no feature
    assert extractor(copy).mark == extractor(own).mark
    own.linear.bias.data[0] += 1e-6
    assert extractor(copy).mark != extractor(own).mark


def test_pixels_and_bytes():
    x = torch.arange(2 * 64, dtype=torch.uint8).reshape(2, 1, 8, 8)
    made = extractor("pixels")
    assert torch.equal(made.features(x), (x.float() / 127.5 - 1).flatten(1))
    assert made.logits(x) is None
    assert made.features(images(2).double()).dtype == torch.float64
    assert made.d is None
    assert extractor("pixels", size=64).d == 64


def test_a_users_module_runs_in_evaluation_mode_and_returns_to_its_own():
    net = Own().train()
    net.drop.eval()
    made, x = extractor(net), images(4)
    found = made.features(x)
    assert torch.equal(found, made.features(x))
    assert net.training
    assert net.norm.training
    assert not net.drop.training
    assert torch.allclose(found[:1], made.features(x[:1]), atol=1e-6)  # the batch does not matter
    assert torch.equal(found, net.eval()(x))
    assert not found.requires_grad
    assert made.name == "test_features.Own"


def test_a_users_module_in_double_precision_gets_double_images():
    made = extractor(Own().double())
    assert made.features(images(2)).dtype == torch.float64


def test_a_users_own_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "their_features.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.a = torch.nn.Linear(64, 3)\n"
        "    def forward(self, x):\n        return self.a(x.flatten(1))\n"
        "net = Net()\n"
        "def mean(x):\n    return x.mean((2, 3))\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    x = images(2)
    assert torch.equal(extractor("their_features:mean").features(x), x.mean((2, 3)))
    assert extractor("their_features:net").features(x).shape == (2, 3)
    state = {"a.weight": torch.ones(3, 64), "a.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "w.pth")
    save_file(state, tmp_path / "w.safetensors")
    found = extractor("their_features:Net", tmp_path / "w.pth")
    assert torch.allclose(found.features(x), x.flatten(1).sum(1, keepdim=True).expand(2, 3), atol=1e-5)
    assert found.mark == extractor("their_features:Net", tmp_path / "w.safetensors").mark
    with pytest.raises(UserError, match="an extractor is a name"):
        extractor("their_features:number")
    with pytest.raises(UserError, match=r"no nn\.Module: leave weights out"):
        extractor("their_features:mean", tmp_path / "w.pth")
    with pytest.raises(UserError, match="another architecture"):
        extractor(Own(), tmp_path / "w.pth")
    for wrong in ("their_features:nothing", "no_such_package:net", "their_features:"):
        with pytest.raises(UserError, match=r"cannot be imported .* Expected package\.module:attribute"):
            extractor(wrong)


def test_a_foreign_network_with_published_weights(real_data: Path):
    made = extractor("resnet20", real_data / "weights" / "resnet20-12fca82f.th")
    x, labels = open_source("cifar10").batch(torch.arange(200))
    features, logits = made.both(x)
    assert features.shape == (200, 64)
    assert logits is not None
    assert labels is not None
    assert float((logits.argmax(1) == labels).float().mean()) > 0.98  # these are training images of its
    with pytest.raises(UserError, match="another architecture"):
        extractor("inception", real_data / "weights" / "resnet20-12fca82f.th")
    with pytest.raises(UserError, match=r"resnet20-12fca82f\.th .*give its path"):
        extractor("resnet20")


def test_random_inception_is_for_dry_runs_and_always_the_same():
    one, other = (extractor("inception", "random", 64) for _ in range(2))
    assert one.mark == other.mark
    assert one.features(images(1)).shape == (1, 64)


def test_a_network_of_ours_as_an_object(judge: Extractor):
    net = feature_extractor("digits")
    assert isinstance(net, Classifier)
    assert torch.equal(extractor(net, name="mine").features(images(2)), judge.features(images(2)))
    inception = Inception()
    assert extractor(inception, size=192).d == 192
    assert extractor(inception).mark != extractor(inception, size=192).mark


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: extractor("digit"), r"no extractor 'digit'\. Did you mean 'digits'\? Expected one of digits, mnist"),
        (lambda: extractor("digits", "w.pth"), "leave weights out"),
        (lambda: extractor("digits", size=64), "digits has 32 features, not 64"),
        (lambda: extractor("inception", "random", 100), "expected size to be one of 64, 192, 768, 2048"),
        (lambda: extractor(lambda x: x), "give one, name="),
        (lambda: extractor(3), "an extractor is a name"),
        (lambda: extractor("digits", device="cuda:99"), "give another device"),
    ],
)
def test_what_is_no_extractor_is_one_sentence(make: object, sentence: str):
    assert callable(make)
    with pytest.raises(UserError, match=sentence) as said:
        make()
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda x: x, r"answered torch\.float32 \(4, 1, 8, 8\) for 4 images; expected floats \(4, d\)"),
        (lambda x: x[:2].flatten(1), "for 4 images"),
        (lambda x: x.flatten(1).long(), "expected floats"),
        (lambda x: None, "answered NoneType"),
        (lambda x: x @ torch.ones(3, 3), "cannot take images"),
        (lambda x: x.no_such_thing, "cannot take images"),
        (lambda x: x.flatten(1)[:, :5], "answered 5 features an image; expected 64"),
    ],
)
def test_answers_that_are_no_features_are_one_sentence(answer: object, sentence: str):
    with pytest.raises(MetricError, match=sentence) as said:
        extractor(answer, name="theirs", size=64).features(images(4))
    assert "\n" not in str(said.value)


def test_images_of_another_shape_are_one_sentence(judge: Extractor):
    with pytest.raises(MetricError, match=r"digits cannot take images \(2, 3, 32, 32\).*expected \(n, 1, 8, 8\)"):
        judge.features(images(2, 3, 32))


# --- statistics ---------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_all_features_at_once(judge: Extractor, real: Reference):
    source = open_source("digits")
    x, _ = source.batch(torch.arange(len(source)))
    expected = moments(judge.features(x))
    assert real.n == len(source)
    assert torch.allclose(real.moments.mean, expected.mean, rtol=1e-6)
    assert torch.allclose(real.moments.cov, expected.cov, rtol=0, atol=1e-6 * float(expected.cov.abs().max()))
    kept = reference("digits")
    assert frechet_distance(real.moments, kept) < 1e-8
    assert (real.extractor, real.mark, real.data) == ("digits", judge.mark, "digits")


def test_statistics_do_not_depend_on_the_batch_and_know_their_data(judge: Extractor, real: Reference):
    told: list[int] = []
    other = reference_statistics(judge, open_source("digits"), batch=100, tell=told.append)
    assert (len(told), sum(told)) == (18, 1797)
    assert torch.allclose(other.moments.cov, real.moments.cov, rtol=0, atol=1e-6 * float(real.moments.cov.abs().max()))
    assert other.data_mark == real.data_mark
    x, _ = open_source("digits").batch(torch.arange(1797))
    assert reference_statistics(judge, x, name="digits").data_mark == real.data_mark
    x[3, 0, 0, 0] = 0.5
    assert reference_statistics(judge, x).data_mark != real.data_mark


def test_a_file_of_statistics_is_the_same_statistics(judge: Extractor, real: Reference, tmp_path: Path):
    path = tmp_path / "digits.safetensors"
    real.save(path)
    found = load_reference(path, judge)
    assert torch.equal(found.moments.mean, real.moments.mean)
    assert torch.equal(found.moments.cov, real.moments.cov)
    same = ("extractor", "mark", "data", "data_mark", "n", "d")
    assert [getattr(found, key) for key in same] == [getattr(real, key) for key in same]
    first = path.read_bytes()
    real.save(path)
    assert path.read_bytes() == first


def test_statistics_of_another_extractor_are_refused(judge: Extractor, real: Reference, tmp_path: Path):
    real.save(tmp_path / "r.safetensors")
    with pytest.raises(MetricError, match=rf"are of the extractor digits with the mark {judge.mark}, the features of mnist"):
        load_reference(tmp_path / "r.safetensors", extractor("mnist"))
    net = feature_extractor("digits")
    net.conv1.weight.data[0, 0, 0, 0] += 1e-3
    with pytest.raises(MetricError, match="expected the same weights"):
        real.check(extractor(net))


def test_published_statistics_bear_no_mark(tmp_path: Path, judge: Extractor):
    found = reference("digits")
    path = tmp_path / "published.npz"
    np.savez(path, mu=found.mean.numpy(), sigma=found.cov.numpy())
    with pytest.warns(FeatureWarning, match="does not say which network.*only the number of features, 32"):
        loaded = load_reference(path, judge)
    assert torch.equal(loaded.moments.mean, found.mean)
    assert torch.equal(loaded.moments.cov, found.cov)
    assert (loaded.mark, loaded.n, loaded.data) == (None, None, "published")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(MetricError, match="32 features a sample, but mnist has 64"):
            load_reference(path, extractor("mnist"))


def test_too_few_samples_say_what_that_does_to_the_number(judge: Extractor):
    with pytest.warns(FeatureWarning, match="20 samples for 32 features give a covariance of rank 19 at most: in 13 directions.*too large"):
        found = reference_statistics(judge, images(20))
    assert int(torch.linalg.matrix_rank(found.moments.cov, hermitian=True)) <= 19
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reference_statistics(judge, images(33))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (images(1), "a covariance needs at least 2"),
        (images(40) * 200, "values up to .*expected images in"),
        (images(40) * float("nan"), "values up to nan"),
        (images(40, 3, 32), "digits cannot take images"),
    ],
)
def test_data_without_statistics_are_one_sentence(judge: Extractor, data: Tensor, sentence: str):
    with pytest.raises(MetricError, match=sentence):
        reference_statistics(judge, data)


def test_features_that_are_not_finite_or_too_many_are_one_sentence():
    with pytest.raises(MetricError, match="40 of 40 samples have features that are not finite"):
        reference_statistics(extractor(lambda x: x.flatten(1) / 0, name="theirs"), images(40))
    with pytest.raises(MetricError, match="40000 features: their covariance takes 13 GB"):
        reference_statistics(extractor(lambda x: torch.zeros(len(x), 40_000), name="theirs"), images(40))
    with pytest.raises(UserError, match="batch must be a whole number"):
        reference_statistics(extractor("pixels"), images(40), batch=0)


def test_missing_and_damaged_files_are_one_sentence(real: Reference, tmp_path: Path):
    whole = tmp_path / "whole.safetensors"
    real.save(whole)
    cut, other, holes = (tmp_path / f"{name}.safetensors" for name in ("cut", "other", "holes"))
    cut.write_bytes(whole.read_bytes()[:-100])
    save_file({"mean": torch.zeros(3)}, other)
    Reference(real.moments._replace(mean=real.moments.mean * float("nan")), "digits", "m", "d", "h").save(holes)
    skew = tmp_path / "skew.safetensors"
    Reference(real.moments._replace(cov=real.moments.cov.triu()), "digits", "m", "d", "h").save(skew)
    for path, sentence in [
        (tmp_path / "none.safetensors", r"no feature statistics at .*sdediff statistics DATA"),
        (cut, "not a whole safetensors file"),
        (other, "not one that sdediff wrote"),
        (holes, "not finite"),
        (skew, "not symmetric"),
    ]:
        with pytest.raises(UserError, match=sentence) as said:
            load_reference(path)
        assert "\n" not in str(said.value)


def test_published_files_that_are_none_are_one_sentence(tmp_path: Path):
    path = tmp_path / "p.npz"
    for arrays, kind, sentence in [
        ({"mu": np.zeros(3)}, DataError, "no sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, UserError, r"expected \(d,\) and \(d, d\)"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}, UserError, "not finite"),
        ({"mu": np.zeros(3), "sigma": -np.eye(3)}, UserError, "negative variance"),
        ({"mu": np.zeros(3), "sigma": np.eye(3, dtype=int)}, DataError, "expected floats"),
        ({"mu": np.array([{}], dtype=object), "sigma": np.eye(3)}, DataError, "pickle"),
    ]:
        np.savez(path, **arrays)
        with pytest.raises(kind, match=sentence):
            load_reference(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"cannot be read|pickle"):
        load_reference(path)


def test_the_command_writes_what_the_call_would(tmp_path: Path, judge: Extractor, real: Reference):
    app = typer.Typer()
    app.command()(statistics)
    out = tmp_path / "new" / "digits.safetensors"
    ran = CliRunner().invoke(app, ["digits", "--extractor", "digits", "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    found = load_reference(out, judge)
    assert torch.equal(found.moments.cov, real.moments.cov)
    ran = CliRunner().invoke(app, ["digits", "--extractor", "digits", "--out", str(out), "-n", "100", "--split", "train"])
    assert ran.exit_code == 0, ran.output
    assert load_reference(out).n == 100
    assert load_reference(out).data == "digits-train[:100]"
    wrong = CliRunner().invoke(app, ["digits", "--extractor", "digits", "--out", str(tmp_path / "x.npz")])
    assert isinstance(wrong.exception, UserError)


def test_every_name_is_listed_and_a_source_gives_its_own(judge: Extractor):
    assert NAMES == ("digits", "mnist", "inception", "inception-pytorch", "resnet20", "pixels")
    x = images(40)
    source = InMemory(x, None, "mine", None)
    assert reference_statistics(judge, source).data == "mine"
