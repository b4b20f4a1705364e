"""The C signatures of the functions that are called through ctypes, told to it once, when the libraries are loaded."""

import ctypes
from typing import Any

P, INT, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
DIMS = ctypes.POINTER(ctypes.c_int64)
TEXT, SIZE = ctypes.c_char_p, ctypes.c_size_t
MAKER = ctypes.CFUNCTYPE(INT, TEXT, P, SIZE)


class Version(ctypes.Structure):
    """What `dnnl_version` points at."""

    _fields_ = [(name, INT) for name in ("major", "minor", "patch")]


# Functions whose operands vary with the kind of primitive (`dnnl_<kind>_primitive_desc_create`) are not here: there,
# integers are passed as C ints, pointers as `P` and arrays of dimensions as `descriptors.int64s`.
ONEDNN: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "dnnl_version": (ctypes.POINTER(Version), ()),
    "dnnl_get_effective_cpu_isa": (INT, ()),
    "dnnl_memory_desc_create_with_strides": (INT, (P, INT, DIMS, INT, DIMS)),
    "dnnl_memory_desc_create_with_tag": (INT, (P, INT, DIMS, INT, INT)),
    "dnnl_memory_desc_clone": (INT, (P, P)),
    "dnnl_memory_desc_equal": (INT, (P, P)),
    "dnnl_memory_desc_get_size": (SIZE, (P,)),
    "dnnl_memory_desc_destroy": (INT, (P,)),
    "dnnl_primitive_attr_create": (INT, (P,)),
    "dnnl_primitive_attr_set_scratchpad_mode": (INT, (P, INT)),
    "dnnl_primitive_attr_set_scales_mask": (INT, (P, INT, INT)),
    "dnnl_primitive_attr_set_post_ops": (INT, (P, P)),
    "dnnl_primitive_attr_destroy": (INT, (P,)),
    "dnnl_post_ops_create": (INT, (P,)),
    "dnnl_post_ops_append_sum": (INT, (P, FLOAT, ctypes.c_int32, INT)),
    "dnnl_post_ops_append_eltwise": (INT, (P, INT, FLOAT, FLOAT)),
    "dnnl_post_ops_destroy": (INT, (P,)),
    "dnnl_reorder_primitive_desc_create": (INT, (P, P, P, P, P, P)),
    "dnnl_primitive_desc_query": (INT, (P, INT, INT, P)),
    "dnnl_primitive_desc_query_md": (P, (P, INT, INT)),
    "dnnl_primitive_desc_next_impl": (INT, (P,)),
    "dnnl_primitive_desc_destroy": (INT, (P,)),
    "dnnl_primitive_create": (INT, (P, P)),
    "dnnl_primitive_destroy": (INT, (P,)),
}

NATIVE: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llm_sources": (TEXT, ()),
    "llm_redirect": (INT, (P,)),
    "llm_start": (INT, (INT, INT)),
    "llm_open": (INT, (P, P, SIZE)),
    "llm_engine": (P, ()),
    "llm_maker": (None, (P,)),
    "llm_put": (INT, (TEXT, DIMS)),
    "llm_count": (SIZE, ()),
    "llm_capacity": (None, (SIZE,)),
}


def declare(library: ctypes.CDLL, functions: dict[str, tuple[Any, tuple[Any, ...]]]) -> None:
    """Tells ctypes the signatures. Raises AttributeError with the name of a function that the library lacks."""
    for name, (result, arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
