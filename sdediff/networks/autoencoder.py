"""A small convolutional autoencoder: images to a coarse grid of a few channels, and back.

    encoder: enter -> [blocks, halve] at every level but the last -> [blocks] -> middle -> code;  decoder: the mirror image.

What keeps the codes tame is the regulariser. "kl" (Kingma, Welling 2014): the encoder answers a normal distribution, whose
divergence from N(0, I) is a term of the loss. "vq" (van den Oord et al. 2017): the decoder sees the nearest of `codes` vectors.
"none": nothing does. As in latent diffusion (Rombach et al. 2022, section 3.1) the quantisation belongs to the decoder: `encode` gives
the code before it. Every activation is smooth (SiLU), and no random number is drawn in here: the noise of "kl" is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .blocks import check_sizes, group_norm, widths_of

__all__ = ["REGULARISERS", "Autoencoder", "Reconstruction"]

REGULARISERS = ("kl", "vq", "none")
_SPAN = (-10.0, 5.0)  # of log std
_REVIVAL = 0.01  # how much all codes are drawn to the data, beside 1 for those in use


class Reconstruction(NamedTuple):
    """x: the images that come back; kl, codebook: the regulariser's terms of each sample (n,), zeros where it has none; log_sigma: ()."""

    x: Tensor
    kl: Tensor
    codebook: Tensor
    log_sigma: Tensor


class Block(nn.Module):
    """h + conv(silu(norm(conv(silu(norm(h)))))); (n, c_in, H, W) -> (n, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = group_norm(c_in, groups), group_norm(c_out, groups)
        self.first, self.second = nn.Conv2d(c_in, c_out, 3, padding=1), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, h: Tensor) -> Tensor:
        inner = self.first(nn.functional.silu(self.first_norm(h)))
        return self.skip(h) + self.second(nn.functional.silu(self.second_norm(inner)))


class Autoencoder(nn.Module):
    """`encode`: images (n, channels, H, W) in [-1, 1] -> codes (n, latent, H/factor, W/factor); `decode`: back. For any H and W.

    Args:
        channels: of the images.
        width: channels at the finest level.
        multipliers: one a level; level i has `width * multipliers[i]` channels. factor = 2^(levels - 1).
        blocks: residual blocks a level.
        latent: channels of the codes.
        regulariser: "kl", "vq" or "none".
        codes: of the codebook ("vq").
        commitment: how much the codes before quantisation are drawn to the codebook, beside 1 the other way round ("vq").
        groups: of the group norms; fewer where the channels do not divide.
        sigma: standard deviation of the images around what `decode` answers, where the decoder is taken as a Gaussian (a proper VAE).
        learned_sigma: learn it, from there.

    Raises:
        ValueError: an unknown regulariser, sizes that cannot be; from `encode`, `decode`, `forward`, images or codes of another shape.
    """

    log_sigma: Tensor

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        latent: int = 4,
        regulariser: str = "kl",
        codes: int = 512,
        commitment: float = 0.25,
        groups: int = 8,
        sigma: float = 1.0,
        learned_sigma: bool = False,
    ) -> None:
        super().__init__()
        if regulariser not in REGULARISERS:
            raise ValueError(f"no regulariser is called {regulariser!r}: choose one of {', '.join(map(repr, REGULARISERS))}")
        sizes = {"channels": channels, "width": width, "blocks": blocks, "latent": latent, "codes": codes, "groups": groups}
        check_sizes("Autoencoder", {**sizes, **{f"multiplier {i}": m for i, m in enumerate(multipliers)}})
        widths = widths_of("Autoencoder", width, multipliers)
        if not 0 < sigma < math.inf:
            raise ValueError(f"Autoencoder(sigma={sigma!r}): expected a positive number.")
        self.config: dict[str, object] = {
            "channels": channels,
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "latent": latent,
            "regulariser": regulariser,
            "codes": codes,
            "commitment": commitment,
            "groups": groups,
            "sigma": sigma,
            "learned_sigma": learned_sigma,
        }
        self.channels, self.latent, self.regulariser, self.commitment = channels, latent, regulariser, commitment
        self.factor = 2 ** (len(multipliers) - 1)
        told = 2 * latent if regulariser == "kl" else latent
        self.encoder = _encoder(channels, widths, blocks, told, groups)
        self.decoder = _decoder(latent, widths[::-1], blocks, channels, groups)
        self.codebook = nn.Parameter(torch.randn(codes, latent)) if regulariser == "vq" else None
        start = torch.tensor(math.log(sigma), dtype=torch.get_default_dtype())
        if learned_sigma:
            self.log_sigma = nn.Parameter(start)
        else:
            self.register_buffer("log_sigma", start, persistent=False)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the codes of images of this shape (channels, H, W), or ValueError."""
        if len(shape) != 3 or shape[0] != self.channels or shape[1] % self.factor or shape[2] % self.factor or not min(shape):
            wanted = f"(n, {self.channels}, H, W) with sides divisible by {self.factor}"
            raise ValueError(f"this autoencoder takes images {wanted}, got samples of shape {tuple(shape)}")
        return self.latent, shape[1] // self.factor, shape[2] // self.factor

    def encode(self, x: Tensor) -> Tensor:
        """The codes of images: of "kl" the mean, of "vq" those before quantisation."""
        return self.moments(x)[0]

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log of the standard deviation of the codes of images; a deviation is there for "kl" only (else -inf: none)."""
        self.latent_shape(x.shape[1:])
        told = self.encoder(x).to(self.log_sigma.dtype)  # autocast or not
        if self.regulariser != "kl":
            return told, torch.full_like(told, -math.inf)
        mean, log_std = told.chunk(2, dim=1)
        return mean, log_std.clamp(*_SPAN)

    def decode(self, z: Tensor) -> Tensor:
        """The images of codes. "vq" takes the nearest code of the book first; its gradient goes straight through."""
        if z.ndim != 4 or z.shape[1] != self.latent:
            raise ValueError(f"this autoencoder decodes (n, {self.latent}, h, w), got {tuple(z.shape)}")
        return self.decoder(z if self.codebook is None else through(z, look_up(self.codebook, nearest(self.codebook, z))))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """Encode and decode, with the terms of the regulariser. noise: N(0, 1) shaped as the codes, for a draw of "kl" (None: its mean)."""
        mean, log_std = self.moments(x)
        none = mean.new_zeros(len(mean))
        z = mean if noise is None else mean + log_std.exp() * noise
        kl = divergence(mean, log_std) if self.regulariser == "kl" else none
        return Reconstruction(self.decode(z), kl, none if self.codebook is None else self._of_codebook(self.codebook, z), self.log_sigma)

    def _of_codebook(self, book: Tensor, z: Tensor) -> Tensor:
        """Codes in use go to the data, the data go to them, and every code of the book goes a little to the nearest of each sample.

        The last term keeps codes from dying: by itself a code that is nearest to nothing would never move again.
        """
        near = nearest(book, z)
        chosen = look_up(book, near)
        flat = z.detach().flatten(2).transpose(1, 2)  # (n, positions, latent)
        with torch.no_grad():
            closest = torch.cdist(book.to(flat.dtype).expand(len(z), -1, -1), flat).argmin(2)
        data = flat.gather(1, closest[..., None].expand(-1, -1, self.latent))
        own = (chosen - z.detach()).square() + self.commitment * (chosen.detach() - z).square()
        return own.flatten(1).mean(1) + _REVIVAL * (book - data).square().flatten(1).mean(1)


def divergence(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, I)) of each sample in nats, (n,)."""
    return 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).flatten(1).sum(1)


def nearest(book: Tensor, z: Tensor) -> Tensor:
    """For every position of z (n, latent, h, w) the number of the nearest code, int64 (n, h, w)."""
    with torch.no_grad():
        flat = z.permute(0, 2, 3, 1).flatten(0, 2)
        return torch.cdist(flat, book.to(flat.dtype)).argmin(1).reshape(z.shape[0], *z.shape[2:])


def look_up(book: Tensor, index: Tensor) -> Tensor:
    """The codes (n, latent, h, w) of these numbers (n, h, w)."""
    return book[index].permute(0, 3, 1, 2)


def through(z: Tensor, chosen: Tensor) -> Tensor:
    """`chosen` to the bit, with the gradient of z (straight through)."""
    return chosen.detach() + (z - z.detach())


class Grow(nn.Module):
    """Twice the sides: nearest, then a convolution."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.mix(nn.functional.interpolate(h, scale_factor=2, mode="nearest"))


def _encoder(channels: int, widths: Sequence[int], blocks: int, told: int, groups: int) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
    c = widths[0]
    for i, width in enumerate(widths):
        parts += [nn.Conv2d(c, c, 3, stride=2, padding=1)] if i else []
        parts += [Block(c if j == 0 else width, width, groups) for j in range(blocks)]
        c = width
    return nn.Sequential(*parts, Block(c, c, groups), group_norm(c, groups), nn.SiLU(), nn.Conv2d(c, told, 3, padding=1))


def _decoder(latent: int, widths: Sequence[int], blocks: int, channels: int, groups: int) -> nn.Sequential:
    c = widths[0]
    parts: list[nn.Module] = [nn.Conv2d(latent, c, 3, padding=1), Block(c, c, groups)]
    for i, width in enumerate(widths):
        parts += [Grow(c)] if i else []
        parts += [Block(c if j == 0 else width, width, groups) for j in range(blocks)]
        c = width
    return nn.Sequential(*parts, group_norm(c, groups), nn.SiLU(), nn.Conv2d(c, channels, 3, padding=1))
