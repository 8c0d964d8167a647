"""`clinrag`, from its first instant on: what this module imports is there before a key can be pressed."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line of this process; Ctrl-C ends it with a line and 130 while it is still being loaded, too."""
    try:
        from api.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("Error: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
