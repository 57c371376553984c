"""The one error of `sdediff.metrics`: samples that a distance is not defined for."""


class MetricError(ValueError):
    """A metric could not be computed. The message says what was given, what was expected and what to do."""
