"""`python -m edgeembed`."""

from edgeembed.cli import main

main()
