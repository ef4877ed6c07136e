"""The demo's entry point: `python -m examples.burst`. The story is in `story.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from examples.burst.interruption import Interruption

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """0: the runs showed what they should; 1: they did not; 2: a dependency is missing; 130: interrupted."""
    try:
        with Interruption() as interruption:
            # Imported here, because that takes a second, in which somebody may press Ctrl-C.
            from examples.burst import story

            return story.tell(arguments, interruption)
    except KeyboardInterrupt:
        print("\nStopped. Nothing is left running.")
        return INTERRUPTED
    except ModuleNotFoundError as error:
        print(f"The demo needs {error.name}. Install it: pip install '.[demo]'", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
