"""`python -m beliefedit COMMAND`, the same as `beliefedit COMMAND`."""

from __future__ import annotations

from beliefedit.cli import main

if __name__ == "__main__":
    main()
