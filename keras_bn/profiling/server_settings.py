"""Settings of tensorflow_model_server and of its container."""

from __future__ import annotations


def flags(threads: int, clients: int) -> list[str]:
    """The flags of tensorflow_model_server for so many threads and clients."""
    return [
        f"--tensorflow_intra_op_parallelism={threads}",
        f"--tensorflow_inter_op_parallelism={threads}",
        f"--grpc_max_threads={max(16, 2 * clients)}",
    ]


def batching(size: int, threads: int) -> str:
    """The fields of a batching configuration."""
    sizes = sorted({1, *(2**power for power in range(1, size.bit_length())), size})
    lines = [
        f"max_batch_size {{ value: {size} }}",
        "batch_timeout_micros { value: 0 }",
        f"num_batch_threads {{ value: {threads} }}",
        "max_enqueued_batches { value: 100 }",
        *(f"allowed_batch_sizes: {allowed}" for allowed in sizes if allowed <= size),
    ]
    return "\n".join(lines) + "\n"
