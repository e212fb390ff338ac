"""The speed of the layer beside its peers, as Markdown.

    python -m benchmarks.layer                                     TensorFlow on a CPU, with memory and XLA
    python -m benchmarks.layer --backend torch --device gpu        the same tables on any backend and device

The backend must be known before Keras is imported, so each choice has a module of its own.
"""

import argparse
import os

TABLES = ("training", "inference", "networks")
DTYPES = ("float32", "float16", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"))
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--seconds", type=float, default=0.5, help="seconds per row and build")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="which to print")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="of the inputs")
    arguments = parser.parse_args()
    if arguments.backend is None:
        from benchmarks.tensorflow_layer import main as run

        run()
        return
    os.environ["KERAS_BACKEND"] = arguments.backend
    if arguments.backend == "torch":
        os.environ["KERAS_TORCH_DEVICE"] = {"cpu": "cpu", "gpu": "cuda"}[arguments.device]
    from benchmarks.backend_layer import main as run_on

    run_on(arguments.device, arguments.seconds, arguments.tables, arguments.dtypes)


if __name__ == "__main__":
    main()
