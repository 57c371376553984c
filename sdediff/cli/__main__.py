"""`python -m sdediff.cli` is `sdediff`, too."""

from . import main

main()
