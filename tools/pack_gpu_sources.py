"""What tools/check_gpu.py needs on a machine without a network, in one folder: run this where there is one.

    python tools/pack_gpu_sources.py .gpu [--sdist llama_cpp_python-0.3.36.tar.gz] [--python 3.12]

The folder then holds llama-cpp-python's source package, cut to what a build with CUDA reads (25 MB, of which
2.6 MB are left when packed), and wheels of the pure Python packages that a machine with PyTorch may lack.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

VERSION = "0.3.36"
WHEELS = ("gguf", "prompt_toolkit", "wcwidth", "rich", "diskcache")
KEPT = ("CMakeLists.txt", "LICENSE.md", "README.md", "pyproject.toml", "llama_cpp", "vendor")
# Of vendor/llama.cpp: what neither the library nor common is built from.
_CUT = (
    "models", "docs", "media", "gguf-py", "examples", "tools", "tests", "benches", "app", "pocs", "ci",
    "skills", "conversion", "grammars", "requirements",
    *(f"ggml/src/ggml-{b}" for b in (
        "vulkan", "sycl", "opencl", "metal", "hexagon", "cann", "webgpu", "hip", "musa", "openvino", "zdnn",
        "zendnn", "virtgpu", "et", "rpc", "blas",
    )),
)  # fmt: skip


def wanted(path: PurePosixPath) -> bool:
    """Whether a file of the source package is needed; the path is inside of it."""
    if path.parts[0] not in KEPT or any(part.startswith(".git") for part in path.parts):
        return False
    return not any(path.is_relative_to(f"vendor/llama.cpp/{c}") for c in _CUT)


def cut(sdist: Path, out: Path) -> None:
    """Unpacks what is wanted of the source package."""
    with tarfile.open(sdist) as archive:
        for member in archive:
            path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if path.parts and member.isfile() and wanted(path):
                # Python before 3.11.4 has no extraction filters; only plain files are wanted anyway.
                content = archive.extractfile(member)
                if content is None or ".." in path.parts:
                    continue
                target = out / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
                target.chmod(0o755 if member.mode & 0o100 else 0o644)


def main() -> int:
    """Fills the folder."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("out", type=Path)
    p.add_argument("--sdist", type=Path, help="the source package; otherwise pip fetches it")
    p.add_argument("--python", default="3.12", help="version of the other machine's Python")
    a = p.parse_args()
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "download",
        "-q",
        "--no-deps",
    ]
    with tempfile.TemporaryDirectory() as folder:
        if a.sdist is None:
            package = f"llama-cpp-python=={VERSION}"
            source = ["--no-binary", ":all:", "--no-build-isolation"]
            subprocess.run([*pip, *source, "-d", folder, package], check=True)
            a.sdist = next(Path(folder).glob("*.tar.gz"))
        cut(a.sdist, a.out / "llama_cpp_python")
    other = ["--only-binary=:all:", "--python-version", a.python]
    subprocess.run([*pip, *other, "-d", str(a.out / "wheels"), *WHEELS], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
