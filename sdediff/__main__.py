"""`python -m sdediff` is `sdediff`."""

from .cli import main

main()
