"""The compiler report: every Triton kernel built for GPUs that are not there (`python -m spela_kernels.aot`).

cases    what a kernel is called with: one generator an op
jobs     those calls recorded and specialised as Triton would: one job for each distinct program
compile  a job -> a row: machine code and its resources
resources, occupancy  registers, spills, shared memory and matrix instructions, read from machine code
report   the table, and what is wrong with a row
"""

from spela_kernels.aot.compile import Row, compile_job
from spela_kernels.aot.jobs import Job, plan
from spela_kernels.aot.report import failures

__all__ = ["Job", "Row", "compile_job", "failures", "plan"]
