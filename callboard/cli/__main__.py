"""`python -m callboard.cli`."""

from callboard.cli import main

main()
