"""What is asked of a GPU and said by it: its precision, and that its memory is full."""

from __future__ import annotations

import types

import pytest
import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.training import Precision
from finetune_trainer.device import autocast
from finetune_trainer.errors import TrainerError
from finetune_trainer.out_of_memory import is_out_of_memory

GPU = torch.device("cuda", 0)


def find_gpu(patch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Let PyTorch find one; before 7.5 it could not even emulate bfloat16."""
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = types.SimpleNamespace(major=capability[0], minor=capability[1])
    patch.setattr(torch.cuda, "get_device_properties", lambda _=None: properties)
    patch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: capability >= (7, 5))


@pytest.mark.parametrize(("capability", "has_bf16"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_is_the_choice_on_gpus_that_compute_in_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has_bf16: bool
) -> None:
    """A T4 only emulates it, which takes longer than FP32: whoever asks for it gets it."""
    find_gpu(monkeypatch, capability)
    assert isinstance(autocast(Precision.AUTO, GPU), torch.autocast) == has_bf16
    assert not isinstance(autocast(Precision.FP32, GPU), torch.autocast)
    assert isinstance(autocast(Precision.BF16, GPU), torch.autocast)


def test_bf16_that_cannot_even_be_emulated_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    find_gpu(monkeypatch, (7, 0))
    assert not isinstance(autocast(Precision.AUTO, GPU), torch.autocast)
    with pytest.raises(TrainerError, match=r"spec\.training\.precision: BF16 is not supported by this GPU") as refused:
        autocast(Precision.BF16, GPU)
    assert refused.value.code == ExitCode.SPEC_INVALID


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        torch.distributed.DistBackendError("NCCL error\nLast error:\nCuda failure 2 'out of memory'"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: str(error)[-24:],
)
def test_full_memory_is_known_by_the_words_of_each_library(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSgemm(handle)`",
        "mat1 and mat2 shapes cannot be multiplied",
    ],
)
def test_other_errors_are_not(words: str) -> None:
    assert not is_out_of_memory(RuntimeError(words))
