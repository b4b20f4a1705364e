"""What makers in torch share."""

import torch
from golden import Golden
from seeded import seeded

torch.manual_seed(0)
torch.set_grad_enabled(False)


def seed(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Gives every array of the module its seeded values; returns names and shapes. Shared arrays have one name."""
    # Buffers that no file has, such as rotary frequencies, are part of the arithmetic.
    kept, shapes = module.state_dict().keys(), {}
    for name, array in [*module.named_parameters(), *module.named_buffers()]:
        if name not in kept or name.endswith("num_batches_tracked") or not array.dtype.is_floating_point:
            continue
        array.data.copy_(torch.from_numpy(seeded(name, tuple(array.shape))))
        shapes[name] = tuple(array.shape)
    module.eval()
    return shapes


__all__ = ["Golden", "seed", "torch"]
