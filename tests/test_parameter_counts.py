"""Published networks have their published number of parameters. On the meta device: nothing is allocated.

The numbers are those of the published code, run with these settings. Ours are the same but for two things: our label table has one row
more, "no label" (`width` of the embedding numbers), where the published network has none; and DiT counts its fixed positions
(tokens x width, never trained) as a parameter, where ours are computed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdediff.networks import build

PUBLISHED = {"groups": 32, "low": 1e-4, "high": 1.0, "middle_attention": True, "zero": True}


def unet(width: int, multipliers: tuple[float, ...], blocks: int, attention: tuple[int, ...], **more: Any) -> tuple[str, dict[str, Any]]:
    config = {"channels": 3, "width": width, "multipliers": multipliers, "blocks": blocks, "attention": attention, "features": width}
    return "unet", {**PUBLISHED, **config, **more}


def ddpm(*levels: Any) -> tuple[str, dict[str, Any]]:
    return unet(128, *levels, scale_shift=False)


def improved(*levels: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    return unet(*levels, heads=4, variance=True, **more)


def adm(*levels: Any, classes: int | None = 1000, **heads: int) -> tuple[str, dict[str, Any]]:
    return unet(*levels, resample="block", variance=True, classes=classes, **(heads or {"head_channels": 64}))


def noisy(size: int, multipliers: tuple[float, ...], blocks: int, attention: tuple[int, ...], pool: str) -> tuple[str, dict[str, Any]]:
    _, config = unet(128, multipliers, blocks, attention, head_channels=64, resample="block", classes=1000, pool=pool, size=size)
    return "noisy_classifier", config


def dit(width: int, depth: int, heads: int, patch: int = 2) -> tuple[str, dict[str, Any]]:
    shape = {"channels": 4, "patch": patch, "width": width, "depth": depth, "heads": heads}
    return "dit", {**shape, "features": 256, "low": 1e-4, "high": 1.0, "classes": 1000, "variance": True}


CASES = {  # our network, the published count, ours over it
    "DDPM CIFAR-10 (35.7 M)": (ddpm((1, 2, 2, 2), 2, (1,)), 35_746_307, 0),
    "DDPM LSUN-256 (114 M)": (ddpm((1, 1, 2, 2, 4, 4), 2, (4,)), 113_673_219, 0),
    "improved DDPM CIFAR-10": (improved(128, (1, 2, 2, 2), 3, (1, 2)), 52_546_438, 0),
    "improved DDPM ImageNet-64": (improved(128, (1, 2, 3, 4), 3, (2, 3)), 121_063_942, 0),
    "improved DDPM ImageNet-64 with classes (270 M)": (improved(192, (1, 2, 3, 4), 3, (2, 3), classes=1000), 273_049_350, 4 * 192),
    "ADM ImageNet-64 (296 M)": (adm(192, (1, 2, 3, 4), 3, (1, 2, 3)), 295_904_454, 4 * 192),
    "ADM ImageNet-128 (422 M)": (adm(256, (1, 1, 2, 3, 4), 2, (2, 3, 4), heads=4), 421_529_606, 4 * 256),
    "ADM ImageNet-256 (554 M)": (adm(256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5)), 553_838_086, 4 * 256),
    "ADM ImageNet-256 without classes": (adm(256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), classes=None), 552_814_086, 0),
    "ADM ImageNet-512 (559 M)": (adm(256, (0.5, 1, 1, 2, 2, 4, 4), 2, (4, 5, 6)), 558_997_638, 4 * 256),
    "ADM's classifier, 64": (noisy(64, (1, 2, 3, 4), 4, (1, 2, 3), "attention"), 65_438_568, 0),
    "ADM's classifier, 64, means": (noisy(64, (1, 2, 3, 4), 4, (1, 2, 3), "mean"), 64_617_320, 0),
    "ADM's classifier, 256": (noisy(256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), "attention"), 54_096_360, 0),
    "DiT-S/2 (33 M)": (dit(384, 12, 6), 32_963_360, -256 * 384),
    "DiT-S/8 (33 M)": (dit(384, 12, 6, patch=8), 33_148_160, -16 * 384),
    "DiT-B/2 (130 M)": (dit(768, 12, 12), 130_512_416, -256 * 768),
    "DiT-L/2 (458 M)": (dit(1024, 24, 16), 458_102_816, -256 * 1024),
    "DiT-XL/2 (675 M)": (dit(1152, 28, 16), 675_129_632, -256 * 1152),
}


@pytest.mark.parametrize(("ours", "published", "over"), CASES.values(), ids=CASES.keys())
def test_as_many_parameters_as_published(ours, published, over):
    with torch.device("meta"):
        net = build(*ours)
    assert sum(p.numel() for p in net.parameters()) - over == published


@pytest.mark.parametrize("ours", [case[0] for name, case in CASES.items() if name.endswith("M)") and "2" in name][:3])
def test_a_published_config_answers_with_the_right_shape(ours):
    with torch.device("meta"):
        net = build(*ours)
        x = torch.zeros(2, ours[1]["channels"], 32, 32)
        assert net(x, torch.zeros(2)).shape == (2, x.shape[1] * (1 + ours[1].get("variance", False)), 32, 32)
