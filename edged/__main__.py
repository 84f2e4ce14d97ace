"""`python -m edged`: the `edged` command of this interpreter."""

import sys

from edged.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
