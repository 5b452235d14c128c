"""``python -m deepflow``."""

import sys

from deepflow.cli import main

sys.exit(main())
