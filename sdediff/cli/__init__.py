"""The command line, `sdediff ...`: every command is one call that a script could make.

Commands are plain functions, in a file each or a few together; `app` makes commands of them. `console` is what they share; `networks` and
`files` are what those share that work on images.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from ..data import DataError
from ..metrics import MetricError
from ..names import UserError
from .console import complain, err, warnings_said
from .inversion import decode, encode, interpolate
from .likelihood import likelihood
from .sampling import sample, solvers
from .statistics import statistics
from .study import app as study
from .training import list_configs, train

app = typer.Typer(
    help="Solve the SDEs and ODEs of diffusion models, and measure every claim about a sampler.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (train, sample, solvers, encode, decode, interpolate, likelihood, statistics):
    app.command()(command)
app.add_typer(study, name="study")
app.command("configs")(list_configs)

INTERRUPTED = 130


def main() -> None:
    """Run the command line: what a user got wrong is one message and exit code 2, never a traceback."""
    try:
        with warnings_said():
            code = app(standalone_mode=False)  # typer gives an exit code back instead of raising it, 130 for an interrupt
    except (UserError, DataError, MetricError) as wrong:
        _fail(str(wrong))
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as wrong:
        if type(wrong).__module__.startswith(("click", "typer")) and hasattr(wrong, "format_message"):
            _fail(wrong.format_message())  # type: ignore[attr-defined]
        raise
    if code == INTERRUPTED:
        err.print(
            "[yellow]interrupted[/] finished files stay; a training run continues when the same command is given again.", soft_wrap=True
        )
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    complain("error", message)
    sys.exit(2)
