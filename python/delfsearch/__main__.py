"""Run the command line as ``python -m delfsearch``."""

from delfsearch.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
