"""`python -m keras_bn_cli`."""

from keras_bn_cli import main

main()
