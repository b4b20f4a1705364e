"""One of several processes that save into one folder: python store_child.py FOLDER PORT PROCESSES RANK

Restores step 1, which one process has saved, over the devices of all; saves what came as step 2, and again with each
number one larger as step 3. A fourth save is left half done.
"""

import os
import pathlib
import signal
import sys

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from llmasos_xla.training import store as module
from llmasos_xla.training.store import Store


def main(folder, port, processes, rank):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
    mesh = jax.make_mesh((2 * processes,), ("a",), axis_types=(AxisType.Auto,))

    def wanted(shape):
        spec = PartitionSpec("a") if shape.shape and shape.shape[0] % (2 * processes) == 0 else PartitionSpec()
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=NamedSharding(mesh, spec))

    with Store(folder, keep=3) as store:
        assert (store.newest_whole()[0], jax.process_count()) == (1, processes)
        arrays, record = store.restore(1, {n: wanted(s) for n, s in store.shapes(1).items()})
        assert not arrays["params/dense/kernel"].is_fully_addressable
        store.save(2, arrays, {**record, "processes": processes})
        more = jax.jit(lambda arrays: {n: a if a.dtype == bool else a + a.dtype.type(1) for n, a in arrays.items()})
        store.save(3, more(arrays), {**record, "processes": processes})
        store.wait()
        assert store.steps() == [1, 2, 3]
        # All processes are killed while the last save's files are written and its folder has no name yet.
        if rank == 0:
            module.digests = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        store.save(4, arrays, record)
        store.wait()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:]))
