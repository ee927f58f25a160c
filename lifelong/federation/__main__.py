"""`python -m lifelong.federation APP` writes the Flower app."""

import sys

from lifelong.errors import LifelongError
from lifelong.federation.server import main

if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LifelongError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
