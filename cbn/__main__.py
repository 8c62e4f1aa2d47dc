"""Run the command with ``python -m cbn``."""

import sys

from cbn.cli import main

sys.exit(main())
