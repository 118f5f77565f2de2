# SPDX-License-Identifier: Apache-2.0
"""`python -m firedoor.cli` is `firedoor`."""

import sys

from firedoor.cli.main import main

sys.exit(main())
