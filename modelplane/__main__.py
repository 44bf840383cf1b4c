"""`python -m modelplane`: the same as the console script, for children that are started without a PATH."""

import sys

from modelplane.cli import main

sys.exit(main())
