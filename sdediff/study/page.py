"""The pictures and the page of a finished study."""

from __future__ import annotations

from pathlib import Path

from . import figures, report
from .extras import paths
from .outcome import Outcome
from .problem import Problem
from .settings import Settings
from .sweep import DDIM_CURVE, DDPM_CURVE
from .tables import adaptive, by_calls


def draw(problem: Problem, settings: Settings, outcome: Outcome, folder: Path) -> set[str]:
    """Draw every picture that the results allow into `folder`; the names of the files drawn."""
    results, floor = outcome.results, outcome.judge.floor[0]
    frame, limit = results.frame(), results.converged_frechet
    title = f"{problem.name}: {settings.samples} samples, {settings.seeds} seed{'s' if settings.seeds > 1 else ''}"
    figures.curves(
        frame,
        "frechet",
        folder / "steps_vs_fid.png",
        title=f"Steps against Frechet distance, {title}",
        label="Frechet distance in classifier features",
        lines={f"noise floor {floor:.2f}": floor, f"converged flow {limit:.2f}": limit},
    )
    figures.curves(
        frame[~frame["stochastic"]],
        "error",
        folder / "error_vs_calls.png",
        title=f"Distance to the converged flow from the same latents, {title}",
        label="RMS error of a pixel in [-1, 1]",
    )
    figures.sheet(_consistency_rows(problem, settings, outcome), folder / "samples.png", title="Each column starts from the same latent")
    along = paths(problem, settings) * problem.scale
    rows = [("", along[:, i]) for i in range(along.shape[1])]
    figures.sheet(rows, folder / "interpolation.png", columns=len(along), title="Along the great circle between two latents")
    figures.round_trip(outcome.round_trip, folder / "round_trip.png")
    return {"steps_vs_fid.png", "error_vs_calls.png", "samples.png", "interpolation.png", "round_trip.png"}


def _consistency_rows(problem: Problem, settings: Settings, outcome: Outcome) -> list[tuple[str, figures.Tensor]]:
    samples, scale = outcome.results.samples, problem.scale
    rows = []
    for name, curve in (("DDIM", DDIM_CURVE), ("DDPM", DDPM_CURVE)):
        rows += [(f"{name} {calls}", samples[curve, calls] * scale) for calls in settings.rows if (curve, calls) in samples]
    return [*rows, ("converged flow", outcome.results.converged[0] * scale), ("real images", problem.real * scale)]


def write_page(problem: Problem, settings: Settings, outcome: Outcome, folder: Path, pictures: set[str], command: str) -> None:
    """Write report.html: every picture and table with a sentence that says what to see in it."""
    judge, results = outcome.judge, outcome.results
    limit = results.converged_frechet
    intro = [
        f"<b>{problem.name}</b>: {settings.samples} samples of each of {settings.seeds} seeds, from the same latents for every solver, on "
        f"{settings.grid!r} knots. Distances are Frechet distances to {len(problem.real)} real images in a small classifier's features.",
        f"<b>The noise floor is {judge.floor[0]:.2f} ± {judge.floor[1]:.2f}</b>: the Frechet distance between two random halves of the real "
        f"data; smaller differences mean little. The converged probability flow scores {limit:.2f}, {limit / judge.floor[0]:.2f} times the "
        f"floor. In pixels the floor is {judge.floor_pixels[0]:.2f} ± {judge.floor_pixels[1]:.2f}.",
        f"Made by <code>{report.escape(command)}</code>; all numbers are in results.csv beside this page.",
    ]
    sections: list[tuple[str, str, Path | str]] = [
        (
            "Steps against Frechet distance",
            "How good the samples are for each number of network calls. Whiskers go from the best to the worst seed; lines at the dotted floor "
            "cannot be told from real data by this measure.",
            folder / "steps_vs_fid.png",
        ),
        (
            "Frechet distance in features",
            "Mean ± standard deviation over seeds; columns are network calls asked.",
            report.table(by_calls(results)),
        ),
        (
            "Frechet distance in pixels",
            "The same in pixels, which see noise that a classifier looks through: this is where DDPM with the large variance shows what its "
            "last steps leave in the image.",
            report.table(by_calls(results, "frechet_pixels")),
        ),
        (
            "Error against the converged flow",
            "How far each deterministic sample is from where the exact probability flow takes the same latent: the slope is the order.",
            folder / "error_vs_calls.png",
        ),
        (
            "Adaptive solvers",
            "They choose their own steps from a tolerance, one error norm for the whole batch; calls are counted as made.",
            report.table(adaptive(results)),
        ),
        (
            "Samples",
            "Rows are step counts, columns are the same latents: with DDIM the image is settled early and only sharpens, with DDPM every step "
            "count draws another image.",
            folder / "samples.png",
        ),
        (
            "Consistency",
            "Runs of few steps against the longest from the same latents: the share of samples with the same classifier label, and the RMS "
            "distance of features. DDIM keeps the content of a latent; DDPM, which draws new noise at every step, does not.",
            report.table(outcome.consistency),
        ),
        (
            "Interpolation",
            "Between two latents along the great circle, decoded by the converged flow: every point on the way is an image.",
            folder / "interpolation.png",
        ),
        (
            "Slerp against straight lines",
            "Midpoints of pairs of latents: a straight line's midpoint is too short by the root of 2 and decodes worse; slerp keeps the norm.",
            report.table(outcome.midpoints),
        ),
        (
            "Round trips",
            "Real images encoded to latents and decoded again through the flow: the error that is left at each number of steps.",
            folder / "round_trip.png",
        ),
        (
            "Round trips, in numbers",
            "A latent of standard deviation below 1 shows that a clean image is not a typical state at t_min.",
            report.table(outcome.round_trip),
        ),
    ]
    shown = [s for s in sections if not isinstance(s[2], Path) or s[2].name in pictures]
    report.write(folder / "report.html", f"Steps against quality: {problem.name}", intro, shown)
