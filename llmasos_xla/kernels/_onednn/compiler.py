"""Compiles the native part, `native/`, into a library that neither Python's version nor jaxlib's matters to.

The package's build hook runs this where nothing but Python is installed, so it imports the standard library only. The
compiler is the one that CXX names, else g++, clang++ or c++ from the path, else Zig's (`ziglang` on the package index),
which the build hook asks for where there is no other, so that a source install needs no compiler; CXX=ziglang asks for
it anyway. CXXFLAGS are added at the end. Run as a program it compiles into the checkout.
"""

import hashlib
import importlib.util
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys

SOURCES = pathlib.Path(__file__).with_name("native")
LIBRARY = pathlib.Path(__file__).with_name("libllmasos_onednn.so")

# Without contraction, which ISO C++ switches off in GCC, no product would join its sum in one instruction.
_FLAGS = (
    "-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", "-s", "-Wall", "-Wextra",
    f"-Wl,--version-script={SOURCES / 'exports.map'}",
)  # fmt: skip
# Any x86-64 CPU may load the library. Zig brings the C library's interface of any version: 2.17 is that of manylinux.
_ZIG_FLAGS = ("-target", "x86_64-linux-gnu.2.17")
_OTHER_FLAGS = ("-march=x86-64", "-mtune=generic")
# So that it runs where the C++ library is older than here; some systems have no static one.
_STATIC = ("-static-libstdc++", "-static-libgcc")


class CompileError(Exception):
    """The compiler's own words."""


def supported() -> bool:
    """Whether oneDNN is published for this system at all."""
    return (sys.platform, platform.machine()) == ("linux", "x86_64")


def digest() -> str:
    """Names the sources by their content; the library carries that of those it was compiled from."""
    content = hashlib.blake2b(digest_size=8)
    for path in sorted(p for ending in ("cpp", "h", "map") for p in SOURCES.glob(f"*.{ending}")):
        content.update(path.name.encode() + b"\0" + path.read_bytes())
    return content.hexdigest()


def command() -> list[str] | None:
    """The C++ compiler, or None."""
    told = os.environ.get("CXX", "")
    if told and told != "ziglang":
        return shlex.split(told)
    found = next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if found and not told:
        return [found]
    return [sys.executable, "-m", "ziglang", "c++"] if importlib.util.find_spec("ziglang") else None


def platform_tag() -> str:
    """The platform that a wheel with the library is for."""
    return "manylinux_2_17_x86_64" if _is_zig(command()) else "linux_x86_64"


def build(target: pathlib.Path = LIBRARY) -> None:
    """Compiles the library, and puts it in its place when it is whole.

    Raises:
        CompileError: if there is no compiler, or it fails.
    """
    compiler = command()
    if compiler is None:
        raise CompileError("no C++ compiler: CXX is not set, there is no g++, clang++ or c++, and no ziglang")
    sources = [str(path) for path in sorted(SOURCES.glob("*.cpp"))]
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    flags = [*_FLAGS, f'-DLLMASOS_SOURCES="{digest()}"', *shlex.split(os.environ.get("CXXFLAGS", ""))]
    trials = [_ZIG_FLAGS] if _is_zig(compiler) else [(*_OTHER_FLAGS, *_STATIC), _OTHER_FLAGS]
    said = ""
    try:
        for trial in trials:
            line = [*compiler, *trial, *flags, *sources, "-o", str(unfinished), "-ldl"]
            done = subprocess.run(line, capture_output=True, text=True)
            if done.returncode == 0:
                os.replace(unfinished, target)
                return
            said = f"{shlex.join(line)}\n{done.stderr}"
    except OSError as error:
        raise CompileError(f"{compiler[0]}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    raise CompileError(said)


def _is_zig(compiler: list[str] | None) -> bool:
    return compiler is not None and any("zig" in word for word in compiler)


if __name__ == "__main__":
    build()
