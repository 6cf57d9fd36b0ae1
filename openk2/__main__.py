"""`python -m openk2`: the same as the `openk2` command."""

from openk2.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
