"""Inception-v3: the published structure, the published answers for given weights, both naming schemes, resizing, and refused files."""

from __future__ import annotations

import math
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sdediff.features import Extractor, extractor
from sdediff.features.files import file_hash
from sdediff.names import UserError
from sdediff.networks import Inception
from sdediff.networks.inception import STAGES, inception_weights, tensorflow_bilinear

# Every convolution of the published module (torchvision 0.29's Inception3 with 1008 classes and no auxiliary head): out<in height x width.
TABLE = """
Conv2d_1a_3x3: 32<3 3x3
Conv2d_2a_3x3: 32<32 3x3
Conv2d_2b_3x3: 64<32 3x3
Conv2d_3b_1x1: 80<64 1x1
Conv2d_4a_3x3: 192<80 3x3
Mixed_5b: branch1x1 64<192 1x1, branch5x5_1 48<192 1x1, branch5x5_2 64<48 5x5, branch3x3dbl_1 64<192 1x1, branch3x3dbl_2 96<64 3x3,
branch3x3dbl_3 96<96 3x3, branch_pool 32<192 1x1
Mixed_5c: branch1x1 64<256 1x1, branch5x5_1 48<256 1x1, branch5x5_2 64<48 5x5, branch3x3dbl_1 64<256 1x1, branch3x3dbl_2 96<64 3x3,
branch3x3dbl_3 96<96 3x3, branch_pool 64<256 1x1
Mixed_5d: branch1x1 64<288 1x1, branch5x5_1 48<288 1x1, branch5x5_2 64<48 5x5, branch3x3dbl_1 64<288 1x1, branch3x3dbl_2 96<64 3x3,
branch3x3dbl_3 96<96 3x3, branch_pool 64<288 1x1
Mixed_6a: branch3x3 384<288 3x3, branch3x3dbl_1 64<288 1x1, branch3x3dbl_2 96<64 3x3, branch3x3dbl_3 96<96 3x3
Mixed_6b: branch1x1 192<768 1x1, branch7x7_1 128<768 1x1, branch7x7_2 128<128 1x7, branch7x7_3 192<128 7x1, branch7x7dbl_1 128<768 1x1,
branch7x7dbl_2 128<128 7x1, branch7x7dbl_3 128<128 1x7, branch7x7dbl_4 128<128 7x1, branch7x7dbl_5 192<128 1x7, branch_pool 192<768 1x1
Mixed_6c: branch1x1 192<768 1x1, branch7x7_1 160<768 1x1, branch7x7_2 160<160 1x7, branch7x7_3 192<160 7x1, branch7x7dbl_1 160<768 1x1,
branch7x7dbl_2 160<160 7x1, branch7x7dbl_3 160<160 1x7, branch7x7dbl_4 160<160 7x1, branch7x7dbl_5 192<160 1x7, branch_pool 192<768 1x1
Mixed_6d: branch1x1 192<768 1x1, branch7x7_1 160<768 1x1, branch7x7_2 160<160 1x7, branch7x7_3 192<160 7x1, branch7x7dbl_1 160<768 1x1,
branch7x7dbl_2 160<160 7x1, branch7x7dbl_3 160<160 1x7, branch7x7dbl_4 160<160 7x1, branch7x7dbl_5 192<160 1x7, branch_pool 192<768 1x1
Mixed_6e: branch1x1 192<768 1x1, branch7x7_1 192<768 1x1, branch7x7_2 192<192 1x7, branch7x7_3 192<192 7x1, branch7x7dbl_1 192<768 1x1,
branch7x7dbl_2 192<192 7x1, branch7x7dbl_3 192<192 1x7, branch7x7dbl_4 192<192 7x1, branch7x7dbl_5 192<192 1x7, branch_pool 192<768 1x1
Mixed_7a: branch3x3_1 192<768 1x1, branch3x3_2 320<192 3x3, branch7x7x3_1 192<768 1x1, branch7x7x3_2 192<192 1x7, branch7x7x3_3 192<192
7x1, branch7x7x3_4 192<192 3x3
Mixed_7b: branch1x1 320<1280 1x1, branch3x3_1 384<1280 1x1, branch3x3_2a 384<384 1x3, branch3x3_2b 384<384 3x1, branch3x3dbl_1 448<1280
1x1, branch3x3dbl_2 384<448 3x3, branch3x3dbl_3a 384<384 1x3, branch3x3dbl_3b 384<384 3x1, branch_pool 192<1280 1x1
Mixed_7c: branch1x1 320<2048 1x1, branch3x3_1 384<2048 1x1, branch3x3_2a 384<384 1x3, branch3x3_2b 384<384 3x1, branch3x3dbl_1 448<2048
1x1, branch3x3dbl_2 384<448 3x3, branch3x3dbl_3a 384<384 1x3, branch3x3dbl_3b 384<384 3x1, branch_pool 192<2048 1x1
"""
# Projections on cos(0), cos(1), ... of what torch-fidelity and pytorch-fid answer for the weights and images below (float32, measured).
TORCH_FIDELITY = {
    "64": [1.5695, 1.79958],
    "192": [3.13848, 3.46114],
    "768": [-10.0222, -7.69032],
    "2048": [-148.375, -123.028],
    "logits_unbiased": [22.0873, 12.581],
    "logits": [20.3223, 10.816],
}
PYTORCH_FID = {
    64: [1.58443, 2.05555],
    192: [3.15508, 3.40293],
    768: [-9.0355, -7.95021],
    2048: [-148.683, -127.692],
}


def published() -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors."""
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for line in " ".join(TABLE.split()).replace(" Mixed", "\nMixed").replace(" Conv2d", "\nConv2d").splitlines():
        block, _, convolutions = line.partition(": ")
        for text in convolutions.split(", "):
            *branch, channels, kernel = text.split(" ")
            b, a = channels.split("<")
            name = ".".join([block.strip(), *branch])
            shapes[f"{name}.conv.weight"] = (int(b), int(a), *(int(k) for k in kernel.split("x")))
            shapes |= {f"{name}.bn.{part}": (int(b),) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes


def random_state() -> dict[str, Tensor]:
    """Weights under which activations neither die nor grow; NumPy's RandomState never changes."""
    draw, state = np.random.RandomState(0), {}
    for name, shape in sorted(published().items()):
        u = torch.from_numpy(draw.random_sample(shape)).float()
        if name.endswith("conv.weight"):
            u = (2 * u - 1) * math.sqrt(6 / math.prod(shape[1:]))
        elif name.endswith(("running_var", "bn.weight")):
            u = 0.5 + u
        else:
            u = (2 * u - 1) * math.sqrt(3 / 2048) if name == "fc.weight" else (2 * u - 1) / 5
        state[name] = u
    return state


def two_images() -> Tensor:
    """uint8 (2, 3, 20, 24): noise, and ramps."""
    noise = np.random.RandomState(1).randint(0, 256, (2, 3, 20, 24), dtype=np.uint8)[0]
    row, column = np.meshgrid(np.arange(20), np.arange(24), indexing="ij")
    ramps = np.stack([12 * row, 10 * column, 7 * row * column % 256]).astype(np.uint8)
    return torch.from_numpy(np.stack([noise, ramps]))


def unit(x: Tensor) -> Tensor:
    return x.float() / 127.5 - 1


def pins(x: Tensor) -> list[float]:
    return (x.double() @ torch.arange(x.shape[1], dtype=torch.float64).cos()).tolist()


def empty(like: str = "tensorflow", quantise: bool = True) -> Inception:
    """Without the time that drawing weights takes."""
    with torch.device("meta"):
        net = Inception(like, quantise)
    return net.to_empty(device="cpu")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state()


@pytest.fixture(scope="module")
def net(state: dict[str, Tensor]) -> Inception:
    net = empty()
    net.load_state_dict(state)
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def saved(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


# --- structure and answers ----------------------------------------------------------------------------------------


def test_names_and_shapes_of_all_tensors_are_those_published(net: Inception):
    assert {name: tuple(v.shape) for name, v in net.state_dict().items()} == published()
    assert sum(p.numel() for p in net.parameters()) == 23_850_960  # torchvision's module with 1008 classes


def test_shapes_of_what_each_stage_leaves(net: Inception):
    maps = net.maps(unit(two_images()[:1]))
    assert {k: tuple(v.shape[1:]) for k, v in maps.items()} == {
        64: (64, 73, 73), 192: (192, 35, 35), 768: (768, 17, 17), 2048: (2048, 8, 8)
    }  # fmt: skip
    assert tuple(net.maps(unit(two_images()[:1]), 192)) == (64, 192)


def test_answers_are_torch_fidelitys(net: Inception):
    x = unit(two_images())
    found = {str(size): v.mean((2, 3)) for size, v in net.maps(x).items()}
    features, found["logits_unbiased"] = net.features_and_logits(x)
    found["logits"] = net.fc(features)
    for name, value in TORCH_FIDELITY.items():
        assert pins(found[name]) == pytest.approx(value, rel=1e-4), name
    assert torch.equal(features, found["2048"])


def test_answers_are_pytorch_fids(state: dict[str, Tensor]):
    net = empty(like="pytorch-fid")
    net.load_state_dict(state)
    with torch.no_grad():
        maps = net.maps(unit(two_images()))
    for size, value in PYTORCH_FID.items():
        assert pins(maps[size].mean((2, 3))) == pytest.approx(value, rel=1e-4), size


# --- what is done to images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (299, 299), (20, 23), (64, 640), (1, 1)])
@pytest.mark.parametrize("like", ["tensorflow", "pytorch-fid"])
def test_resizing_is_the_formula(shape: tuple[int, int], like: str):
    x = torch.from_numpy(np.random.RandomState(0).random_sample((1, 1, *shape)))

    def weights(pixels: int) -> np.ndarray:
        """(299, pixels): what output i takes of every pixel."""
        table = np.zeros((299, pixels))
        for i in range(299):
            at = i * pixels / 299 if like == "tensorflow" else max((i + 0.5) * pixels / 299 - 0.5, 0)
            low = int(at + 1e-6)
            table[i, min(low, pixels - 1)] += 1 - (at - low)
            table[i, min(low + 1, pixels - 1)] += at - low
        return table

    expected = weights(shape[0]) @ x[0, 0].numpy() @ weights(shape[1]).T
    if like == "tensorflow":
        found = tensorflow_bilinear(x, 299)
    else:
        found = F.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-4)  # TensorFlow's scale is a float32


def test_images_are_rounded_to_bytes_unless_asked_not_to(net: Inception):
    x = unit(two_images()[:1])
    near = (x + 0.3 / 127.5).clamp(-1, 1)  # nothing of which is nearer to another byte
    assert torch.equal(net.prepared(near), net.prepared(x))
    exact = empty(quantise=False)
    assert torch.allclose(exact.prepared(near).mean() - exact.prepared(x).mean(), torch.tensor(0.3 / 128), rtol=0.1)
    assert torch.allclose(exact.prepared(x), net.prepared(x), atol=1e-5)
    assert float(net.prepared(torch.full((1, 3, 4, 4), 7.0)).max()) == 127 / 128


def test_scaling_is_that_of_the_original_and_of_pytorch_fid(net: Inception):
    black, white = -torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    torch_like = empty(like="pytorch-fid")
    for made, lightest in ((net, 127 / 128), (torch_like, 1.0)):
        assert float((made.prepared(black) + 1).abs().max()) < 1e-6
        assert float((made.prepared(white) - lightest).abs().max()) < 1e-6


def test_grey_images_are_three_equal_channels(net: Inception):
    grey = unit(two_images()[:1, :1])
    assert torch.equal(net.features(grey, 64), net.features(grey.expand(-1, 3, -1, -1), 64))


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 2, 8, 8), torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.int64), torch.zeros(1, 3, 0, 8)]
)
def test_other_images_are_refused(net: Inception, x: Tensor):
    with pytest.raises(ValueError, match="expected floats"):
        net.features(x, 64)


def test_unknown_options_are_refused(net: Inception):
    with pytest.raises(ValueError, match="expected one of 'tensorflow'"):
        Inception(like="torch")
    with pytest.raises(ValueError, match="no 100 features"):
        net.features(torch.zeros(1, 3, 8, 8), 100)


def test_nothing_is_learned_or_counted_in_training_mode(net: Inception):
    x = unit(two_images()[:1])
    before = net.features(x, 64)
    assert torch.equal(net.train().features(x, 64), before)
    assert torch.equal(net.eval().features(x, 64), before)


# --- weights ------------------------------------------------------------------------------------------------------


def other_names(state: dict[str, Tensor], scheme: str) -> dict[str, Tensor]:
    """The same weights as another program would have saved them."""
    if scheme == "counted":  # torchvision's own batch norm, wrapped in DataParallel
        counters = {name.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for name in state if "running_mean" in name}
        return {f"module.{name}": v for name, v in (state | counters).items()}
    places = {step: f"blocks.{i}.{j}" for i, steps in enumerate(STAGES.values()) for j, step in enumerate(steps)}
    return {f"{places[name.split('.')[0]]}.{name.partition('.')[2]}": v for name, v in state.items() if not name.startswith("fc.")}


@pytest.fixture(scope="module")
def usual(saved: Path) -> tuple[Extractor, Tensor, Tensor]:
    """The extractor of the usual names, and its features and logits."""
    made = extractor("inception", saved)
    features, logits = made.both(two_images()[:1])
    assert logits is not None
    return made, features, logits


@pytest.mark.parametrize("scheme", ["counted", "blocks"])
def test_weights_of_every_naming_scheme_are_the_same_extractor(
    state: dict[str, Tensor], usual: tuple[Extractor, Tensor, Tensor], tmp_path: Path, scheme: str
):
    torch.save(other_names(state, scheme), tmp_path / "other.pth")
    other = extractor("inception", tmp_path / "other.pth")
    made, features, logits = usual
    assert other.mark == made.mark
    assert other.d == made.d == 2048
    found, other_logits = other.both(two_images()[:1])
    assert torch.equal(found, features)
    if scheme == "blocks":  # pytorch-fid's own module has no head
        assert other_logits is None
    else:
        assert other_logits is not None
        assert torch.equal(other_logits, logits)


def test_another_size_or_resizing_is_another_mark(saved: Path, usual: tuple[Extractor, Tensor, Tensor]):
    small = extractor("inception", saved, 64)
    assert len({usual[0].mark, small.mark, extractor("inception-pytorch", saved).mark}) == 3
    assert small.features(two_images()[:1]).shape == (1, 64)
    assert small.logits(two_images()[:1]) is None


def test_pytorch_fids_block_names_are_where_its_module_has_them():
    names = {"blocks.0.2.bn.bias": "Conv2d_2b_3x3.bn.bias", "blocks.1.1.conv.weight": "Conv2d_4a_3x3.conv.weight"}
    names |= {
        "blocks.2.3.branch3x3.bn.bias": "Mixed_6a.branch3x3.bn.bias",
        "blocks.3.2.branch_pool.bn.bias": "Mixed_7c.branch_pool.bn.bias",
    }
    assert list(inception_weights(dict.fromkeys(names, torch.zeros(1)))) == list(names.values())


def test_without_weights_the_sentence_says_which_and_where():
    with pytest.raises(UserError, match=r"pt_inception-2015-12-05-6726825d\.pth.*github\.com/mseitzer/pytorch-fid.*torch-fidelity.*path"):
        extractor("inception")
    with pytest.raises(UserError, match="there are no weights at /nowhere"):
        extractor("inception", "/nowhere/w.pth")


def test_a_file_of_another_network_is_refused_and_names_the_first_tensor(state: dict[str, Tensor], tmp_path: Path):
    path = tmp_path / "w.pth"
    torch.save({k: v for k, v in state.items() if k != "Mixed_7c.branch1x1.bn.bias"}, path)
    with pytest.raises(UserError, match=r"another architecture \(not fitting: Mixed_7c\.branch1x1\.bn\.bias\)"):
        extractor("inception", path)
    torch.save({**state, "AuxLogits.fc.bias": torch.zeros(3), "fc.bias": torch.zeros(1000)}, path)
    with pytest.raises(UserError, match=r"not fitting: AuxLogits\.fc\.bias, fc\.bias \(1000,\) for \(1008,\)"):
        extractor("inception", path)


class Harmful:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, how: str):
    path, trace = tmp_path / "w.pth", tmp_path / "ran"
    if how == "torch":
        torch.save({"Conv2d_1a_3x3.conv.weight": Harmful(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Harmful(trace), protocol=2))
    with pytest.raises(UserError, match=r"more than tensors.*run its code"):
        extractor("inception", path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Harmful(trace)))  # and it would have
    assert trace.exists()


def test_torchscript_is_refused(tmp_path: Path):
    path = tmp_path / "inception-2015-12-05.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("inception/constants.pkl", b"")  # which only TorchScript has
    with pytest.raises(UserError, match="TorchScript, which is code"):
        extractor("inception", path)


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 half a zip"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no state dict, or a damaged one"):
        extractor("inception", path)


def test_a_file_must_have_the_hash_that_its_name_says(saved: Path, tmp_path: Path):
    wrong = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    shutil.copy(saved, wrong)
    with pytest.raises(UserError, match="not the file that its name says"):
        extractor("inception", wrong)
    right = wrong.rename(tmp_path / f"weights-{file_hash(saved)[:8]}.pth")
    assert extractor("inception", right).mark == extractor("inception", saved).mark


@pytest.mark.parametrize("held", [[1, 2], {"state_dict": {}}, {"a": 1}])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, held: object):
    torch.save(held, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        extractor("inception", tmp_path / "w.pth")
