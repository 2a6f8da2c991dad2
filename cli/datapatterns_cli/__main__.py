"""`python -m datapatterns_cli` is `datapatterns`."""

import sys

from datapatterns_cli.main import main

sys.exit(main())
