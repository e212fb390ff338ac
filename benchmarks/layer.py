"""The speed of the layer beside its peers, as Markdown.

    python -m benchmarks.layer                                     TensorFlow on a CPU, with memory and XLA
    python -m benchmarks.layer --backend torch --device gpu        the same tables on any backend and device

The backend must be known before Keras is imported, so each choice has a module of its own.
"""

import argparse
import os


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"))
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--seconds", type=float, default=0.5, help="seconds per row and build")
    parser.add_argument("--no-networks", action="store_true", help="leave out the whole networks")
    arguments = parser.parse_args()
    if arguments.backend is None:
        from benchmarks.tensorflow_layer import main as run

        run()
        return
    os.environ["KERAS_BACKEND"] = arguments.backend
    if arguments.backend == "torch":
        os.environ["KERAS_TORCH_DEVICE"] = {"cpu": "cpu", "gpu": "cuda"}[arguments.device]
    from benchmarks.backend_layer import main as run_on

    run_on(arguments.device, arguments.seconds, not arguments.no_networks)


if __name__ == "__main__":
    main()
