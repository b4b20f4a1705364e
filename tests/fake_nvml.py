"""Modules that answer as pynvml does, with GPUs that a test thinks up."""

import types
from collections.abc import Sequence


class NVMLError(Exception):
    pass


def library(gpus: Sequence[dict], driver: bool = True) -> types.ModuleType:
    """A pynvml. A GPU is a dict of what it tells, in NVML's units; what it lacks is not supported."""
    module = types.ModuleType("pynvml")
    module.NVMLError = NVMLError
    module.opened = 0
    module.NVML_TEMPERATURE_GPU = 0

    def init():
        if not driver:
            raise NVMLError("NVML Shared Library Not Found")
        module.opened += 1

    def shutdown():
        module.opened -= 1

    def told(name):
        def ask(gpu, *_):
            if name not in gpu:
                raise NVMLError("Not Supported")
            return gpu[name]

        return ask

    def by_uuid(uuid):
        for gpu in gpus:
            if uuid in gpu.get("parts", ()):
                return {"whole": gpu}
        raise NVMLError("Not Found")

    module.nvmlInit, module.nvmlShutdown = init, shutdown
    module.nvmlDeviceGetCount = lambda: len(gpus)
    module.nvmlDeviceGetHandleByIndex = lambda i: gpus[i]
    module.nvmlDeviceGetHandleByUUID = by_uuid
    module.nvmlDeviceGetDeviceHandleFromMigDeviceHandle = lambda part: part["whole"]
    for name, key in {
        "UUID": "uuid",
        "Name": "name",
        "TotalEnergyConsumption": "millijoules",
        "PowerUsage": "milliwatts",
        "UtilizationRates": "use",
        "MemoryInfo": "memory",
        "Temperature": "celsius",
    }.items():
        setattr(module, f"nvmlDeviceGet{name}", told(key))
    return module
