"""Networks and training steps as files that other runtimes run: ONNX, torch.export, ExecuTorch."""

from spela.export.inference import inference_program
from spela.export.onnx_file import write_onnx
from spela.export.program import Program
from spela.export.pt2_file import write_pt2
from spela.export.pte_file import write_pte
from spela.export.runs import export_run
from spela.export.train_step import train_step_program

__all__ = [
    "Program",
    "export_run",
    "inference_program",
    "train_step_program",
    "write_onnx",
    "write_pt2",
    "write_pte",
]
