"""The command `clipsight`, from its first moment on: what takes long to import comes later."""

from __future__ import annotations

import sys

from . import signals


def main() -> None:
    signals.stop_by_exception()
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(signals.exit_code())


if __name__ == "__main__":
    main()
