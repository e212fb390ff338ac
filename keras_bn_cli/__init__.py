"""The command line, `keras-bn`.

It is a package of its own because importing anything from `keras_bn` imports Keras and a backend, which takes
seconds. Here they are imported when a command needs them, so help and usage errors answer at once.
"""

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it with exit code 130 and no traceback."""
    try:
        from keras_bn_cli.program import program

        program(prog_name="keras-bn")
    except KeyboardInterrupt:
        sys.exit(130)
