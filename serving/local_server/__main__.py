"""`python -m serving.local_server`."""

from serving.local_server.main import main

raise SystemExit(main())
