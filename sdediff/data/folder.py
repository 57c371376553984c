"""Where real data lies on this machine."""

import os
from pathlib import Path

from sdediff.data.errors import DataError


def data_folder() -> Path | None:
    """The folder of real data (`mnist/`, `cifar10/`, ...), or None when this machine has none.

    It is the folder named by the environment variable SDEDIFF_DATA, else `../shared/data` seen from the current
    directory, else `../shared/data` seen from the root of the repository.
    Raises DataError when SDEDIFF_DATA is set and names no folder: a typing error must not look like "no data".
    """
    named = os.environ.get("SDEDIFF_DATA")
    if named:
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise DataError(
                f"SDEDIFF_DATA names {named!r}, which is not a folder. Point it at the folder that holds mnist/, "
                "cifar10/ and so on, or unset it."
            )
        return folder
    for start in (Path.cwd(), Path(__file__).resolve().parents[2]):
        folder = start.parent / "shared" / "data"
        if folder.is_dir():
            return folder
    return None
