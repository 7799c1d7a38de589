"""``python -m study`` is ``mariposa``."""

import sys

from study.cli import main

sys.exit(main())
