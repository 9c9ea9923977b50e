"""`python -m paligemma.training STAGE`: the command line of the stages."""

import sys

from . import main

sys.exit(main())
