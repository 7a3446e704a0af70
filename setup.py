"""The compiled passes of the CPU back-end; without a compiler the install goes on without them."""

import runpy
import sys
from pathlib import Path

from setuptools import Extension, setup

# torch's wheels bring libgomp on Linux, and the passes share its threads; elsewhere they run on one.
THREADS = ["-fopenmp"] if sys.platform == "linux" else []
PACKAGE = Path("spela_kernels")
passes = runpy.run_path(str(PACKAGE / "cpu" / "sources.py"))


def extension(name: str) -> Extension:
    source, *headers = (str(PACKAGE / file) for file in passes["SOURCES"][name])
    return Extension(
        name,
        [source],
        depends=headers,
        define_macros=[("SOURCES", str(passes["checksum"](name, PACKAGE)))],
        # -fno-trapping-math lets comparisons vectorise.
        extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math", *THREADS],
        extra_link_args=THREADS,
        optional=True,
    )


setup(ext_modules=[extension(name) for name in passes["SOURCES"]])
