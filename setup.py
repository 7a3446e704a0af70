"""The compiled passes of the CPU back-end; without a compiler the install goes on without them."""

import sys

from setuptools import Extension, setup

# torch's wheels bring libgomp on Linux, and the passes share its threads; elsewhere they run on one.
THREADS = ["-fopenmp"] if sys.platform == "linux" else []


def passes(name: str, source: str, *headers: str) -> Extension:
    return Extension(
        name,
        [source],
        depends=["spela_kernels/cpu/passes.h", *headers],
        # -fno-trapping-math lets comparisons vectorise.
        extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math", *THREADS],
        extra_link_args=THREADS,
        optional=True,
    )


setup(
    ext_modules=[
        passes(
            "spela_kernels.cpu._products",
            "spela_kernels/cpu/products.c",
            "spela_kernels/cpu/forks.h",
            "spela_kernels/cpu/products.h",
            "spela_kernels/cpu/products_tile.h",
        ),
        passes(
            "spela_kernels.linear._rows",
            "spela_kernels/linear/rows.c",
            "spela_kernels/cpu/forks.h",
            "spela_kernels/linear/rows.h",
        ),
        passes(
            "spela_kernels.linear._steps",
            "spela_kernels/linear/steps.c",
            "spela_kernels/cpu/products.h",
            "spela_kernels/linear/rows.h",
        ),
        passes(
            "spela_kernels.pooling._windows",
            "spela_kernels/pooling/windows.c",
            "spela_kernels/cpu/forks.h",
        ),
    ]
)
