"""`python -m serving.local_server`."""

import sys

from serving.local_server.main import main

sys.exit(main())
