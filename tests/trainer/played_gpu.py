"""Plays a GPU where there is none: each tensor knows which device it would be on, and those of two are not mixed.

All of them lie in the CPU's memory and are computed there. What is played is what Python calls: results are where their
inputs are, and what would raise "Expected all tensors to be on the same device" raises. It cannot show what a real one
computes otherwise, how long that takes and how much memory, what C++ mixes by itself, nor how GPUs communicate.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo  # what imports it within a mode fails
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from finetune_trainer import device as devices

GPU = torch.device("cuda", 0)
_DEVICE, _IS_CUDA = Tensor.device.__get__, Tensor.is_cuda.__get__  # type: ignore[attr-defined]
_GET_DATA, _SET_DATA = Tensor.data.__get__, Tensor.data.__set__  # type: ignore[attr-defined]
_GET_GRAD, _SET_GRAD = Tensor.grad.__get__, Tensor.grad.__set__  # type: ignore[attr-defined]
_BACKWARD = {Tensor.backward, torch.autograd.grad, torch.autograd.backward}
_MAY_MIX = {_GET_DATA, _SET_DATA, _GET_GRAD, _SET_GRAD, Tensor.copy_, Tensor.__setitem__, Tensor.type}
_MAY_MIX |= {torch._has_compatible_shallow_copy_type, Tensor.is_set_to, Tensor.__repr__}


def is_on_gpu(tensor: Tensor) -> bool:
    """Whether it would be on the GPU."""
    return tensor.__dict__.get("_is_on_gpu", False)


@contextlib.contextmanager
def played_gpu() -> Iterator[None]:
    """All training in this process is on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "pick_device", lambda *_: GPU)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        patch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.arange(16, dtype=torch.uint8))
        patch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 0)
        patch.setattr(nn.RNNBase, "flatten_parameters", lambda _: None)
        make, is_on, dtype = torch.Tensor._make_subclass, torch.is_autocast_enabled, torch.get_autocast_dtype
        patch.setattr(torch.Tensor, "_make_subclass", staticmethod(lambda *args: _as(args[1], make(*args))))
        patch.setattr(torch, "is_autocast_enabled", lambda *_: is_on("cpu"))
        patch.setattr(torch, "get_autocast_dtype", lambda *_: dtype("cpu"))
        begin = torch.autocast.__init__
        patch.setattr(torch.autocast, "__init__", lambda self, _, *args, **kwargs: begin(self, "cpu", *args, **kwargs))
        with _Played():
            yield


class _Played(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        inputs = _tensors((args, kwargs))
        any_on_gpu = any(map(is_on_gpu, inputs))
        if function in (_DEVICE, _IS_CUDA):
            return _device(args[0]) if function == _DEVICE else any_on_gpu
        if function in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return _moved(function, *args, **kwargs)
        goes_to_gpu = any_on_gpu
        if (device := kwargs.get("device")) is not None and torch.device(device).type in ("cpu", "cuda"):
            goes_to_gpu, kwargs["device"] = torch.device(device).type == "cuda", "cpu"
        if any_on_gpu and function not in _MAY_MIX | _BACKWARD:
            _check(function, args, inputs)
        result = function(*args, **kwargs)
        if function == _SET_DATA:
            _put(args[0], is_on_gpu(args[1]))
        known = {id(one) for one in inputs}
        for one in _tensors(result):
            if id(one) not in known and function not in (Tensor.__setitem__, Tensor.copy_):
                _put(one, goes_to_gpu)
        return result


def _check(function: Any, args: Any, inputs: list[Tensor]) -> None:
    """Raise what PyTorch raises for tensors of two devices; single numbers may be anywhere, and a GPU's indices."""
    others = [one for one in inputs if not is_on_gpu(one) and one.device.type != "meta" and one.ndim]
    if function is Tensor.__getitem__:
        others = [] if is_on_gpu(args[0]) else [args[0]]
    if others:
        shapes = [f"{'cuda' if is_on_gpu(one) else 'cpu'} {[*one.shape]}" for one in inputs]
        name = getattr(function, "__name__", function)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {', '.join(shapes)}")


def _moved(function: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Of `to`, `cpu` or `cuda`: another tensor where the device is another one."""
    device = {Tensor.cpu: "cpu", Tensor.cuda: "cuda"}.get(function, kwargs.pop("device", None))
    dtype = kwargs.pop("dtype", None)
    for one in args:
        if isinstance(one, Tensor):
            device, dtype = _device(one), one.dtype
        elif isinstance(one, str | torch.device) or (isinstance(one, int) and not isinstance(one, bool)):
            device = one
        elif isinstance(one, torch.dtype):
            dtype = one
    kind = torch.device(_device(tensor) if device is None else device).type
    if kind == "meta" or tensor.device.type == "meta":
        return tensor.to(kind if kind == "meta" else "cpu", dtype=dtype)
    kept = {name: value for name, value in kwargs.items() if name != "non_blocking"}
    result = Tensor.to(tensor, dtype=dtype, **kept)
    if (kind == "cuda") != is_on_gpu(tensor):
        result = tensor.clone() if result is tensor else result
        result = result.detach() if isinstance(tensor, nn.Parameter) else result
    return result if result is tensor else _put(result, kind == "cuda")


def _device(tensor: Tensor) -> torch.device:
    return GPU if is_on_gpu(tensor) else tensor.device


def _tensors(value: Any) -> list[Tensor]:
    """All in a value of arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [one for part in parts for one in _tensors(part)]


def _put(tensor: Tensor, is_on: bool) -> Tensor:
    tensor.__dict__["_is_on_gpu"] = is_on
    return tensor


def _as(source: Tensor, tensor: Tensor) -> Tensor:
    return _put(tensor, is_on_gpu(source))
