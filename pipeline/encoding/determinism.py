"""Numerics that give the same bytes whoever encodes: one intra-op thread, deterministic kernels.

`tests/integration/test_encoding_survives.py` compares whole stores made by one and two actors, and
with one and two threads.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class _Settings:
    deterministic: int
    cudnn_deterministic: bool
    cudnn_benchmark: bool
    cudnn_tf32: bool
    matmul_tf32: bool

    @classmethod
    def current(cls) -> "_Settings":
        return cls(
            deterministic=torch.get_deterministic_debug_mode(),
            cudnn_deterministic=torch.backends.cudnn.deterministic,
            cudnn_benchmark=torch.backends.cudnn.benchmark,
            cudnn_tf32=torch.backends.cudnn.allow_tf32,
            matmul_tf32=torch.backends.cuda.matmul.allow_tf32,
        )

    def apply(self) -> None:
        # `use_deterministic_algorithms` is this, and imports torch's compiler: 3 s at every start.
        torch.set_deterministic_debug_mode(self.deterministic)
        torch.backends.cudnn.deterministic = self.cudnn_deterministic
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        torch.backends.cudnn.allow_tf32 = self.cudnn_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.matmul_tf32


_EXACT = _Settings(
    deterministic=2,  # an error where there is no deterministic kernel
    cudnn_deterministic=True,
    cudnn_benchmark=False,
    cudnn_tf32=False,
    matmul_tf32=False,
)
_lock = threading.Lock()
_inside = 0
_before = _EXACT


@contextmanager
def exact_numerics() -> Iterator[None]:
    """Torch's process-wide settings for reproducible encoding; restored when the last leaves.

    One intra-op thread, because a reduction split over n threads rounds differently for each n.
    Cores are used by encoding several shards at a time instead. That number is each thread's own:
    one that somebody else sets leaves the others as they are.
    """
    global _inside, _before
    # cuBLAS reads it when its first handle is made; without it deterministic matmuls raise.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with _lock:
        if _inside == 0:
            _before = _Settings.current()
            _EXACT.apply()
        _inside += 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        with _lock:
            _inside -= 1
            if _inside == 0:
                _before.apply()
