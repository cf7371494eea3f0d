"""A device of torch's that computes on the processor, but cannot be mixed with it: what a GPU is to a test.

`register` cannot be undone, so whoever uses it has a process of its own.
"""

import torch
from torch.utils._pytree import tree_map, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "other"
ran: dict[str, int] = {}  # operators, by how often they ran there
_COPIES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from")
_LOWERED = ("matmul", "linear", "addmm", "bmm", "mm", "baddbmm")  # by autocast, as on a GPU


class Tensor(torch.Tensor):
    """A tensor of that device, whose numbers lie in `inner`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner, requires_grad=False):
        inner = inner.inner if isinstance(inner, Tensor) else inner
        if inner.device.type != "cpu":  # accelerate makes a parameter of meta by the type of the old one
            return torch.nn.Parameter(inner, requires_grad)
        place = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = cls._make_wrapper_subclass(cls, inner.size(), device=torch.device(NAME, 0), **place)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func._schema.name
        if name not in _COPIES:
            tree_map_only(torch.Tensor, _demand, (args, kwargs))
            ran[name] = ran.get(name, 0) + 1
        wanted = kwargs.get("device")
        stays = isinstance(args[0], Tensor) if wanted is None else torch.device(wanted).type == NAME
        if wanted is not None and stays:
            kwargs["device"] = torch.device("cpu")
        found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if name.endswith("_"):
            return args[0]
        return tree_map_only(torch.Tensor, Tensor, found) if stays or name not in _COPIES else found


def _demand(value):
    """Numbers alone may come from the processor, as on a GPU."""
    if not isinstance(value, Tensor) and value.dim():
        raise RuntimeError("tensors on two devices")


def _inner(value):
    return value.inner if isinstance(value, Tensor) else value


class _Module:
    """What torch asks of a device."""

    is_available = is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])
    get_rng_state = staticmethod(lambda device=None: torch.zeros(1))
    set_rng_state = staticmethod(lambda state, device=None: None)

    class device:  # noqa: N801
        """Which of them is meant: there is one."""

        def __init__(self, *_):
            pass

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass


def register():
    """Make it known; what is answered must be kept."""
    _setup_privateuseone_for_python_backend(NAME, _Module())
    aten, others = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    aten.impl("empty.memory_format", lambda size, dtype=None, **_: _empty(size, dtype), "PrivateUse1")
    aten.impl("empty_strided", lambda size, stride, dtype=None, **_: _empty(size, dtype), "PrivateUse1")
    aten.impl("_copy_from", _copy, "PrivateUse1")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in _LOWERED:
        aten.impl(name, _lowered(getattr(torch.ops.aten, name)), "AutocastPrivateUse1")
    return aten, others


def _empty(size, dtype):
    return Tensor(torch.empty(size, dtype=dtype))


def _copy(source, target, non_blocking=False):
    _inner(target).copy_(_inner(source))
    return target


def _lowered(call):
    outside = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def lower(value):
        return value.to(torch.bfloat16) if value.dtype == torch.float32 else value

    def product(*args):
        with torch._C._ExcludeDispatchKeyGuard(outside):
            return call(*tree_map_only(torch.Tensor, lower, args))

    return product
