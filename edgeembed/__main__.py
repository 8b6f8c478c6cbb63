"""`python -m edgeembed`."""

from edgeembed.cli import main

if __name__ == "__main__":
    main()
