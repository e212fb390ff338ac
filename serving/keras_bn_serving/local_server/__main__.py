"""`python -m keras_bn_serving.local_server`."""

from keras_bn_serving.local_server.main import main

raise SystemExit(main())
