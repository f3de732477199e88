"""`python -m camvid_lang`: see `camvid_lang.cli`."""

import sys

from camvid_lang.cli import main

sys.exit(main())
