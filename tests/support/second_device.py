"""A second device for machines that have only a CPU; its tensors are kept in the CPU's memory.

It refuses what a GPU would refuse: an operation on tensors of both devices. It counts what would
make a GPU wait: reading numbers back, or asking for a size that depends on them. Importing this
module changes the process for good, so tests import it in a process of their own.
"""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

aten = torch.ops.aten
NAME = "second"
# Tensors on the device may be indexed with tensors on the CPU, but not the other way round.
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}
READ = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
}
waits = 0  # how many times the CPU had to wait for the device


class OnSecond(torch.Tensor):
    """A tensor that claims to be on the second device; ``held`` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnSecond:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves, structure = pytree.tree_flatten((args, kwargs))
        here = [x for x in leaves if type(x) in (torch.Tensor, torch.nn.Parameter) and x.dim()]
        copies = function is aten.copy_.default
        indexes = function in INDEXING and isinstance(args[0], OnSecond)
        if here and not copies and not indexes:
            raise RuntimeError(f"{function}: tensors on two devices")
        leaving = torch.device(kwargs.get("device") or NAME).type != NAME
        leaving |= copies and not isinstance(args[0], OnSecond)
        if function in READ or leaving:
            global waits
            waits += 1
        if function is aten._fused_sdp_choice.default:
            return 0  # the plain formula: the CPU's fused kernel is not the device's
        there = torch.device("cpu")
        held = [
            x.held if isinstance(x, OnSecond) else there if isinstance(x, torch.device) else x
            for x in leaves
        ]
        new_args, new_kwargs = pytree.tree_unflatten(held, structure)
        found = function(*new_args, **new_kwargs)
        if leaving:
            return found
        found = pytree.tree_map_only(torch.Tensor, OnSecond, found)
        return return_and_correct_aliasing(function, args, kwargs, found)

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self, **kwargs):
        return repr(self.cpu())


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
# A module that is moved keeps its parameters, and shared ones stay shared, as with a GPU.
torch.__future__.set_swap_module_params_on_conversion(True)
_kernels = torch.library.Library("aten", "IMPL")
_others = torch.library.Library("_", "IMPL")
_others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")

# What autocast does on CUDA for the operations of the models here; on a CPU the rules differ.
LOWER = "addmm baddbmm bmm conv3d linear matmul mm mv scaled_dot_product_attention"
FULL = """binary_cross_entropy_with_logits cumsum exp layer_norm log log_softmax.int logsumexp
    mse_loss pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor reciprocal rsqrt softmax.int softplus
    sum sum.dim_IntList"""
WIDEST = "addcdiv addcmul dot index_put scatter_add tensordot"
_below_autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def _autocast(name: str, wanted) -> None:
    """Let ``name`` cast its floating-point tensors on the device to ``wanted(their types)``."""
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(aten, packet), overload or "default")

    def cast_and_call(*args, **kwargs):
        def able(x) -> bool:
            known = isinstance(x, torch.Tensor) and x.device.type == NAME
            return known and x.is_floating_point() and x.dtype != torch.float64

        with torch._C._ExcludeDispatchKeyGuard(_below_autocast):
            leaves, structure = pytree.tree_flatten((args, kwargs))
            dtype = wanted({x.dtype for x in leaves if able(x)})
            leaves = [x.to(dtype) if able(x) else x for x in leaves]
            new_args, new_kwargs = pytree.tree_unflatten(leaves, structure)
            return operation(*new_args, **new_kwargs)

    _kernels.impl(name, cast_and_call, "AutocastPrivateUse1")


for _name in LOWER.split():
    _autocast(_name, lambda dtypes: torch.get_autocast_dtype(NAME))
for _name in FULL.split():
    _autocast(_name, lambda dtypes: torch.float32)
for _name in WIDEST.split():
    _autocast(_name, lambda dtypes: max(dtypes, key=lambda dtype: dtype.itemsize))


def _kernel(name: str):
    def register(function):
        _kernels.impl(name, function, "PrivateUse1")
        return function

    return register


@_kernel("empty.memory_format")
def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return OnSecond(torch.empty(size, dtype=dtype))


@_kernel("empty_strided")
def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return OnSecond(torch.empty_strided(size, stride, dtype=dtype))


@_kernel("arange")
@_kernel("arange.start_step")
def _arange(*bounds, dtype=None, layout=None, device=None, pin_memory=None):
    return OnSecond(torch.arange(*bounds, dtype=dtype))


@_kernel("_efficientzerotensor")
def _zeros(size, *, dtype=None, layout=None, device=None, pin_memory=None):
    return OnSecond(torch.zeros(size, dtype=dtype))


@_kernel("copy_")
def _copy(target, source, non_blocking=False):
    target.held.copy_(source.held if isinstance(source, OnSecond) else source)
    return target


@_kernel("_local_scalar_dense")
def _number(tensor):
    global waits
    waits += 1
    return tensor.held.item()
