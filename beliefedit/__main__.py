"""`beliefedit COMMAND`, also as `python -m beliefedit COMMAND`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from beliefedit.batch import process


def main(arguments: Sequence[str] | None = None, defaults: Mapping[str, Any] | None = None) -> None:
    """Run a command.

    Args:
        arguments: of the command line; None: those of this process.
        defaults: of options, by command and parameter.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["run"]:
        process.prepare()  # before the imports, which take seconds
    from beliefedit.cli import main as command

    try:
        command(arguments, prog_name="beliefedit", default_map=defaults)
    except OSError as error:
        process.explain(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
