"""A training step of a synchronized layer in one of two processes of `torch.distributed`.

    python processes.py RANK RENDEZVOUS DATA.npz...

Each DATA holds x, dy and mask of both ranks and the weights gamma and beta. A file beside it, with the suffix
RANK.npz, gets the results of this process.
"""

import sys

import numpy as np
import torch
from keras import ops

from keras_bn import BatchNormalization


def main(rank, rendezvous, *paths):
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=int(rank), world_size=2)
    for path in paths:
        data = np.load(path)
        layer = BatchNormalization(synchronized=True, momentum=0.5, epsilon=1e-3)
        layer.build(data["x_0"].shape)
        layer.gamma.assign(data["gamma"])
        layer.beta.assign(data["beta"])
        x = torch.tensor(data[f"x_{rank}"], requires_grad=True)
        y = layer(x, training=True, mask=data[f"mask_{rank}"])
        values = [x, layer.gamma.value, layer.beta.value]
        gradients = torch.autograd.grad(y, values, torch.tensor(data[f"dy_{rank}"]))
        found = dict(zip(("y", "dx", "dgamma", "dbeta"), (y, *gradients), strict=True))
        found = {f"{name}_{rank}": ops.convert_to_numpy(value) for name, value in found.items()}
        np.savez(f"{path}.{rank}.npz", **found, weights=np.stack(layer.get_weights()))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
