"""Models whose score, flow and density are closed form: what every claim is measured on.

For data sum_k w_k N(m_k, C_k) the marginal at t is sum_k w_k N(alpha m_k, S_k), S_k = alpha^2 C_k + sigma^2 I; the posterior means of
x0 and eps are weighted sums over the components of m_k + alpha C_k S_k^-1 (x - alpha m_k) and sigma S_k^-1 (x - alpha m_k). Oracles answer
with v = cos(angle) eps - sin(angle) x0, which is defined at both ends (alpha = 0 and sigma = 0). Inside all is float64 on the CPU;
answers have the state's dtype and device. States are (B, d).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .batch import check_count, labels_of
from .combine import spread
from .names import UserError
from .prediction import Prediction, check_labels
from .schedule import Knot, Schedule

_POINT = 1e-30  # the variance of a mode without width at the data: small enough to choose the nearest, and finite


def _float64(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).detach().clone()


class _Oracle:
    """What the oracles share: a schedule, the dimension d, and the answer from posterior means."""

    def __init__(self, schedule: Schedule, dimension: int):
        self.schedule = schedule
        self.shape = (dimension,)

    def __call__(self, x: Tensor, t: Knot) -> Prediction:
        """The exact prediction at states x (B, d)."""
        x0, eps = self._means(x.cpu().double(), t)
        r = (t.alpha**2 + t.sigma**2) ** 0.5
        v = spread(t.alpha / r, eps) * eps - spread(t.sigma / r, x0) * x0
        return Prediction(x, t, v.to(x), "v")

    def rows(self, index: Tensor):
        """Itself: every sample sees the same oracle."""
        return self

    def score(self, x: Tensor, t: Knot) -> Tensor:
        """The exact score of the marginal at t, (B, d)."""
        return -(self._means(x.cpu().double(), t)[1] / spread(t.sigma, x)).to(x)

    def _means(self, x: Tensor, t: Knot) -> tuple[Tensor, Tensor]:
        """The posterior means (E[x0 | x], E[eps | x]), float64."""
        raise NotImplementedError

    def noised(self, x0: Tensor, t: Knot, generator: torch.Generator) -> Tensor:
        z = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        return self.schedule.forward(x0, t, z)


class Gaussian(_Oracle):
    """Data N(mean, cov): `cov` a number, a diagonal (d,), or a matrix (d, d), symmetric and not negative. Its flow is closed form.

    With a number or a diagonal every operation is elementwise, so results do not depend on the batch by a single bit.
    """

    def __init__(self, mean: Any, cov: Any, *, schedule: Schedule):
        self.mean = _float64(mean).reshape(-1)
        cov = _float64(cov)
        super().__init__(schedule, len(self.mean))
        d = len(self.mean)
        self.axes: Tensor | None = None
        if cov.ndim == 2:
            if cov.shape != (d, d) or not torch.allclose(cov, cov.T, rtol=1e-10, atol=1e-12):
                raise UserError(f"cov must be a symmetric matrix ({d}, {d}), a diagonal ({d},) or a number, not {tuple(cov.shape)}.")
            self.variances, self.axes = torch.linalg.eigh(cov)
            rounding = 1e-12 * self.variances.abs().max()
            self.variances = torch.where(self.variances.abs() <= rounding, 0.0, self.variances)
        elif cov.ndim == 1 and len(cov) != d:
            raise UserError(f"cov must be a symmetric matrix ({d}, {d}), a diagonal ({d},) or a number, not {tuple(cov.shape)}.")
        else:
            self.variances = cov.expand(d).clone()
        if not bool((self.variances >= 0).all()):
            raise UserError("cov must not be negative.")

    def _along(self, x: Tensor) -> Tensor:
        return x if self.axes is None else x @ self.axes

    def _back(self, x: Tensor) -> Tensor:
        return x if self.axes is None else x @ self.axes.T

    def _means(self, x: Tensor, t: Knot) -> tuple[Tensor, Tensor]:
        alpha, sigma = spread(t.alpha, x), spread(t.sigma, x)
        off = self._along(x - alpha * self.mean)
        total = alpha**2 * self.variances + sigma**2
        zero = total == 0  # a component without variance, at the data: nothing to infer
        whitened = torch.where(zero, 0.0, off / torch.where(zero, 1.0, total))
        return self.mean + self._back(alpha * self.variances * whitened), self._back(sigma * whitened)

    def flow(self, x: Tensor, t: Knot, s: Knot) -> Tensor:
        """The probability flow from (x, t) to s, exactly: each principal component scales by the ratio of its standard deviations."""
        (a, b), (c, d) = ((spread(k.alpha, x.cpu().double()), spread(k.sigma, x.cpu().double())) for k in (t, s))
        ratio = torch.sqrt((c**2 * self.variances + d**2) / (a**2 * self.variances + b**2))
        return (c * self.mean + self._back(ratio * self._along(x.cpu().double() - a * self.mean))).to(x)

    def moments(self, t: Knot) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of the marginal at t, float64."""
        total = t.alpha**2 * self.variances + t.sigma**2
        axes = torch.eye(len(self.mean), dtype=torch.float64) if self.axes is None else self.axes
        return t.alpha * self.mean, axes * total @ axes.T

    def log_density(self, x: Tensor, t: Knot) -> Tensor:
        """log p_t(x), float64 (B,)."""
        alpha, sigma = spread(t.alpha, x.cpu().double()), spread(t.sigma, x.cpu().double())
        total = alpha**2 * self.variances + sigma**2
        off = self._along(x.cpu().double() - alpha * self.mean)
        return -0.5 * (off**2 / total + torch.log(2 * math.pi * total)).sum(-1)

    def sample(self, n: int, t: Knot | None = None, seed: int = 0) -> Tensor:
        """n exact draws of the data, or of the marginal at t, float64 (n, d)."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(n, len(self.mean), generator=generator, dtype=torch.float64)
        x0 = self.mean + self._back(self.variances.sqrt() * z)
        return x0 if t is None else self.noised(x0, t, generator)


class Mixture(_Oracle):
    """Data sum_k w_k N(m_k, diag s_k^2): means (K, d), stds (K,) or (K, d), weights (K,) (default equal)."""

    def __init__(self, means: Any, stds: Any, weights: Any = None, *, schedule: Schedule):
        self.means = _float64(means)
        if self.means.ndim != 2:
            raise UserError(f"means must have shape (modes, dimension), not {tuple(self.means.shape)}.")
        k, d = self.means.shape
        super().__init__(schedule, d)
        stds = _float64(stds)
        if tuple(stds.shape) not in ((k,), (k, d)):
            raise UserError(f"a mixture of {k} modes in {d} dimensions needs stds of shape ({k},) or ({k}, {d}), not {tuple(stds.shape)}.")
        self.variances = (stds[:, None] if stds.ndim == 1 else stds).expand(k, d) ** 2
        weights = torch.full((k,), 1.0 / k, dtype=torch.float64) if weights is None else _float64(weights)
        if weights.shape != (k,) or bool((weights < 0).any()) or not float(weights.sum()) > 0 or bool((stds < 0).any()):
            raise UserError(f"a mixture of {k} modes needs {k} weights and {k} standard deviations, none of them negative.")
        self.log_weights = torch.log(weights / weights.sum())

    def _parts(self, x: Tensor, t: Knot) -> tuple[Tensor, Tensor, Tensor]:
        """(log of the joint density (B, K), offsets (B, K, d), total variances (., K, d))."""
        alpha, sigma = spread(t.alpha, x[:, None]), spread(t.sigma, x[:, None])
        off = x[:, None, :] - alpha * self.means
        total = (alpha**2 * self.variances + sigma**2).clamp(min=_POINT)
        log_joint = self.log_weights - 0.5 * (off**2 / total + torch.log(2 * math.pi * total)).sum(-1)
        return log_joint, off, total

    def _means(self, x: Tensor, t: Knot) -> tuple[Tensor, Tensor]:
        log_joint, off, total = self._parts(x, t)
        share = torch.softmax(log_joint, dim=1)[:, :, None]
        whitened = off / total
        x0 = (share * (self.means + spread(t.alpha, off) * self.variances * whitened)).sum(1)
        return x0, spread(t.sigma, x) * (share * whitened).sum(1)

    def log_density(self, x: Tensor, t: Knot) -> Tensor:
        """log p_t(x), float64 (B,)."""
        return torch.logsumexp(self._parts(x.cpu().double(), t)[0], dim=1)

    def sample(self, n: int, t: Knot | None = None, seed: int = 0) -> Tensor:
        """n exact draws of the data, or of the marginal at t, float64 (n, d)."""
        generator = torch.Generator().manual_seed(seed)
        mode = self._modes(n, generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        x0 = self.means[mode] + self.variances.sqrt()[mode] * z
        return x0 if t is None else self.noised(x0, t, generator)

    def _modes(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)


class LabelledMixture(Mixture):
    """A mixture whose modes belong to classes (`of`, one class a mode, 0, 1, ..), so that p(x), p(x | y) and p(y | x) are closed form.

    As it stands it is the model of all the data; `with_labels(labels)` is that of samples of these classes, (B,) of them.
    """

    labels: Tensor | None = None

    def __init__(self, means: Any, stds: Any, of: Sequence[int], weights: Any = None, *, schedule: Schedule):
        super().__init__(means, stds, weights, schedule=schedule)
        of = tuple(of)
        if len(of) != len(self.means) or set(of) != set(range(max(of, default=0) + 1)):
            raise UserError(f"of= gives each of the {len(self.means)} modes its class, 0, 1, .. without gaps, not {of!r}.")
        self.of = torch.tensor(of)
        self.classes = max(of) + 1
        self._all = self.log_weights

    def with_labels(self, labels: Tensor | None) -> LabelledMixture:
        """p(x | y) for samples of these classes (B,), `classes` meaning no label; None: p(x)."""
        model = copy.copy(self)
        model.labels = None if labels is None else check_labels(labels, self.classes).cpu()
        model.log_weights = self._all
        if model.labels is not None:
            own = (model.labels[:, None] == self.of) | (model.labels[:, None] == self.classes)
            model.log_weights = torch.log_softmax(torch.where(own, self._all, -math.inf), dim=1)
        return model

    def rows(self, index: Tensor) -> LabelledMixture:
        """The oracle for a subset of the samples: their labels only."""
        if self.labels is None:
            return self
        model = copy.copy(self)
        model.labels, model.log_weights = labels_of(self.labels, index), self.log_weights[index.cpu()]
        return model

    def _parts(self, x: Tensor, t: Knot) -> tuple[Tensor, Tensor, Tensor]:
        if self.labels is not None:
            check_count(self.labels, len(x))
        return super()._parts(x, t)

    def classify(self, x: Tensor, t: Knot) -> Tensor:
        """log p(y | x_t) of every class, (B, classes), of x's dtype: the exact classifier, whatever the labels."""
        log_joint = self.with_labels(None)._parts(x.cpu().double(), t)[0]
        of_class = [torch.logsumexp(log_joint[:, self.of == y], dim=1) for y in range(self.classes)]
        return torch.log_softmax(torch.stack(of_class, dim=1), dim=1).to(x)

    def _modes(self, n: int, generator: torch.Generator) -> Tensor:
        if self.labels is None:
            return super()._modes(n, generator)
        if n != len(self.labels):
            raise UserError(f"this mixture has {len(self.labels)} labels: draw as many samples, not {n}.")
        return torch.multinomial(self.log_weights.exp(), 1, generator=generator)[:, 0]


class Empirical(_Oracle):
    """A kernel density estimate: data (N, ...) each with a Gaussian of standard deviation `bandwidth`. The optimal score of a finite set.

    Data of more than one axis is flattened; states are (B, d). Distances by matrix products, `chunk` states at a time, in float64.
    """

    def __init__(self, data: Any, bandwidth: float, *, schedule: Schedule, chunk: int = 1024):
        self.data = _float64(data)
        if self.data.ndim < 2 or not len(self.data) or not bandwidth >= 0:
            raise UserError("Empirical needs at least one data point, data of shape (N, ...), and a bandwidth of at least 0.")
        self.data = self.data.flatten(1)
        super().__init__(schedule, self.data.shape[1])
        self.bandwidth, self.chunk = float(bandwidth), chunk
        self.centre = self.data.mean(0)  # distances lose fewer digits around the centre

    def _log_kernels(self, x: Tensor, t: Knot) -> tuple[Tensor, Any]:
        """(log of the joint density (B, N), total variance)."""
        alpha = spread(t.alpha, x)
        total = torch.as_tensor(alpha**2 * self.bandwidth**2 + spread(t.sigma, x) ** 2, dtype=x.dtype).clamp(min=_POINT)
        y, points = x - alpha * self.centre, self.data - self.centre
        square = (y**2).sum(1, keepdim=True) - 2 * alpha * (y @ points.T) + alpha**2 * (points**2).sum(1)
        log_total = torch.log(2 * math.pi * total)
        return -0.5 * (square.clamp(min=0.0) / total + x.shape[1] * log_total) - math.log(len(self.data)), total

    def _means(self, x: Tensor, t: Knot) -> tuple[Tensor, Tensor]:
        if len(x) > self.chunk and isinstance(t.alpha, float):
            parts = [self._means(part, t) for part in x.split(self.chunk)]
            return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        log_joint, total = self._log_kernels(x, t)
        nearest = torch.softmax(log_joint, dim=1) @ self.data
        alpha, sigma = spread(t.alpha, x), spread(t.sigma, x)
        whitened = (x - alpha * nearest) / total
        return nearest + alpha * self.bandwidth**2 * whitened, sigma * whitened

    def log_density(self, x: Tensor, t: Knot) -> Tensor:
        """log p_t(x), float64 (B,)."""
        parts: Sequence[Tensor] = x.cpu().double().flatten(1).split(self.chunk)
        return torch.cat([torch.logsumexp(self._log_kernels(p, t)[0], dim=1) for p in parts])

    def sample(self, n: int, t: Knot | None = None, seed: int = 0) -> Tensor:
        """n exact draws of the density, or of its marginal at t, float64 (n, d)."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(len(self.data), (n,), generator=generator)
        z = torch.randn(n, self.data.shape[1], generator=generator, dtype=torch.float64)
        x0 = self.data[which] + self.bandwidth * z
        return x0 if t is None else self.noised(x0, t, generator)
