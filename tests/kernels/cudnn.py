"""Which of cuDNN's calls XLA's GPU compiler makes of a convolution: told from its form, and by the compiler itself."""

import importlib.util
import os
import re

import jax

# An H100 as XLA describes one, as far as convolutions ask.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def forms(function, *shapes):
    """The convolutions of a program for cuda, by the rules of XLA's pass that rewrites them (`ConvRewriter`)."""
    traced = jax.jit(function).trace(*(jax.ShapeDtypeStruct(s, "bfloat16") for s in shapes))
    module = traced.lower(lowering_platforms=("cuda",)).compiler_ir("stablehlo")
    return [_form(op) for op in _walk(module.operation) if op.name == "stablehlo.convolution"]


def _walk(op):
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner.operation
                yield from _walk(inner.operation)


def _form(op):
    arrays = (*op.operands, op.results[0])
    labels = re.search(r"conv<\[(.*?)\]x\[(.*?)\]->\[(.*?)\]>", str(op.attributes["dimension_numbers"])).groups()
    size, window, out = ([n for _, n in sorted(_space(text, v.type.shape))] for text, v in zip(labels, arrays))
    rank = len(window)
    stride, base, dilation = (
        list(op.attributes[n]) if n in op.attributes else [1] * rank
        for n in ("window_strides", "lhs_dilation", "rhs_dilation")
    )
    flat = [int(n) for n in op.attributes["padding"]]
    pads = list(zip(flat[::2], flat[1::2]))
    groups, batch_groups = (op.attributes[f"{n}_group_count"].value for n in ("feature", "batch"))
    if groups == 1 and max(stride) == 1:
        # Neither call takes negative padding. What is left of the high end of the picture may be less than a stride.
        each = list(zip(size, window, out, pads, base, dilation))
        data = all(k > low and n * b >= m - low for n, k, m, (low, _), b, _ in each)
        wanted = _is_reversed(op.operands[1]) or (max(window) == 1 and max(base) > 1)
        if wanted and max(dilation) == 1 and data:
            return "backward data"
        larger = [k > m for k, m in zip(window, out)]
        kernel = all(low >= 0 and m + k * d > n + low for n, k, m, (low, _), _, d in each)
        if max(base) == 1 and kernel and (any(larger) or batch_groups > 1) and (max(dilation) > 1 or all(larger)):
            return "backward filter"
    uneven = any(low != high for low, high in pads)
    if max(base) > 1 or (max(dilation) > 1 and uneven):
        return "forward with zeros written out"
    return "forward with a kernel as large as the picture" if max(window) > 31 else "forward"


def _space(text, shape):
    return [(label, n) for label, n in zip(text.split(", "), shape) if label.isdigit()]


def _is_reversed(value):
    """Whether a reverse is all that was last done; two cancel, but not across a barrier."""
    reverses = 0
    while hasattr(value.owner, "operands") and value.owner.name in (
        "stablehlo.reverse", "stablehlo.transpose", "stablehlo.convert",
    ):  # fmt: skip
        reverses += value.owner.name == "stablehlo.reverse"
        value = value.owner.operands[0]
    return reverses % 2 == 1


def missing():
    """Why XLA's GPU compiler is not here, or None."""
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        return "XLA's GPU compiler is not installed: pip install jax-cuda12-plugin jax-cuda12-pjrt"
    return None


def calls(function, *shapes):
    """The calls of cuDNN in the program that XLA's GPU compiler makes for an H100; no GPU is asked."""
    from jax.experimental import topologies

    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    devices = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1").devices
    there = jax.sharding.SingleDeviceSharding(devices[0])
    arrays = [jax.ShapeDtypeStruct(s, "bfloat16", sharding=there) for s in shapes]
    lowered = jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",))
    # A program without a GPU cannot be read from the cache again.
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    try:
        text = lowered.compile(compiler_options={"xla_gpu_autotune_level": 0}).as_text()
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
    assert " convolution(" not in text
    names = {"Forward": "forward", "BackwardInput": "backward data", "BackwardFilter": "backward filter"}
    found = []
    for window, target in re.findall(r'window=\{size=([0-9x]+).*?custom_call_target="__cudnn\$conv(\w+)"', text):
        name = next(name for end, name in names.items() if target.endswith(end))
        large = name == "forward" and max(map(int, window.split("x"))) > 31
        found.append(f"{name} with a kernel as large as the picture" if large else name)
    if re.search(r"padding=(?:\d+_\d+(?:_\d+)?x)*\d+_\d+_[1-9]", text):
        found.append("zeros written out")
    return found
