"""The one error of `sdediff.data`: a file, a name or an argument that does not describe a data set."""


class DataError(ValueError):
    """Data could not be read or made. The message says what was found, what was expected and what to do."""
