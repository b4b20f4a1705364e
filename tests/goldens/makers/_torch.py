"""What makers in torch share."""

import torch
from golden import Golden
from seeded import seeded

torch.manual_seed(0)
torch.set_grad_enabled(False)


def seed(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Gives every array of the module its seeded values; returns names and shapes. Shared arrays have one name."""
    shapes = {}
    for name, array in [*module.named_parameters(), *module.named_buffers()]:
        if name.endswith("num_batches_tracked") or not array.dtype.is_floating_point:
            continue
        array.data.copy_(torch.from_numpy(seeded(name, tuple(array.shape))))
        shapes[name] = tuple(array.shape)
    module.eval()
    return shapes


__all__ = ["Golden", "seed", "torch"]
