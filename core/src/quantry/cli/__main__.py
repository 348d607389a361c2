"""`python -m quantry.cli`, where the `quantry` script is not on the path."""

from quantry.cli import main

main()
