"""`python -m asyncdb_guard`: the command asyncdb-guard."""

import sys

from asyncdb_guard.cli.main import main

sys.exit(main())
