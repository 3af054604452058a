"""Triton's interpreter, without what it does again and again to the same effect.

Triton 3.9 replaces the functions of ``triton.language`` by interpreted ones at every call of one jitted function by
another, searching some thousand attributes each time; makes a table of types anew for each value; and reduces by a
combining function one element at a time. Here the functions are replaced once in a launch, the table is made once, and
a reduction combines whole slices, in the same order: the same bits (``tests/test_interpreted.py``) in
less time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


class _Nothing:
    """What is to be undone after a call whose functions were replaced already."""

    def restore(self) -> None:
        pass


VERSION = "3.9."
"""The versions of Triton whose interpreter is known here; others run as they are."""


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Replaces the slow parts of the interpreter until ``patch`` is undone; does nothing without Triton."""
    try:
        import triton
        from triton.runtime import interpreter
    except ImportError:
        return
    if not triton.__version__.startswith(VERSION):
        return
    for owner, name, make in replaced(interpreter):
        quick = make(interpreter)
        quick.__wrapped__ = getattr(owner, name)  # Triton's own, for the test of this file
        patch.setattr(owner, name, quick)


def replaced(interpreter: Any) -> list[tuple[Any, str, Callable[[Any], Any]]]:
    """Where each replaced function is, its name, and what makes the new one."""
    language = interpreter.tl.core
    return [
        (interpreter, "_patch_lang", _once_in_a_launch),
        (interpreter, "_patch_builtin", _searched_once),
        (interpreter, "_get_np_dtype", _remembered_types),
        (interpreter.ReduceOps, "generic_reduce", _by_slices),
        (language.block_type, "__init__", _remembered_blocks),
        (language.tensor, "__init__", _remembered_shapes),
    ]


def _once_in_a_launch(interpreter: Any) -> Any:
    replace, tl = interpreter._patch_lang, interpreter.tl
    done: set[int] = set()  # modules whose functions are replaced, in the launch that is being run

    def patch_lang(fn: Any) -> Any:
        modules = {id(value) for value in fn.__globals__.values() if value is tl or value is tl.core}
        if modules and modules <= done:
            return _Nothing()
        scope = replace(fn)
        restore = scope.restore
        done.update(modules)

        def restore_and_forget() -> None:  # called at the end of a launch, for the kernel itself alone
            done.clear()
            restore()

        scope.restore = restore_and_forget
        return scope

    return patch_lang


def _searched_once(interpreter: Any) -> Any:
    is_builtin = interpreter.tl.core.is_builtin
    names: dict[Any, list[str]] = {}

    def patch_builtin(package: Any, builder: Any, scope: Any) -> None:
        if package not in names:
            names[package] = [name for name, member in inspect.getmembers(package) if is_builtin(member)]
        for name in names[package]:
            member = getattr(package, name)
            if is_builtin(member):  # not replaced already
                interpreter._patch_attr(package, name, member, builder, scope)

    return patch_builtin


def _remembered_types(interpreter: Any) -> Any:
    make, tl = interpreter._get_np_dtype, interpreter.tl
    known: dict[str, Any] = {}

    def get_np_dtype(dtype: Any) -> Any:
        if isinstance(dtype, tl.block_type):
            dtype = dtype.element_ty
        if isinstance(dtype, tl.pointer_type):
            return make(dtype)
        found = known.get(dtype.name)
        if found is None:
            found = known[dtype.name] = make(dtype)
        return found

    return get_np_dtype


def _remembered_blocks(interpreter: Any) -> Any:
    """The checks and the name of a type of blocks, made once for a shape."""
    make, constexpr = interpreter.tl.core.block_type.__init__, interpreter.tl.constexpr
    known: dict[Any, tuple[Any, int, str]] = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([size.value if isinstance(size, constexpr) else size for size in shape])
        key = sizes, element_ty.name
        if key not in known:
            make(self, element_ty, shape)
            known[key] = self.shape, self.numel, self.name
        self.element_ty = element_ty
        self.shape, self.numel, self.name = known[key]

    return init


def _remembered_shapes(interpreter: Any) -> Any:
    """The shape of a tensor as constants of the compiler, made once for a shape."""
    make = interpreter.tl.core.tensor.__init__
    known: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def init(self: Any, handle: Any, type: Any) -> None:
        sizes = tuple(type.shape) if type.is_block() else ()
        if sizes not in known:
            make(self, handle, type)
            known[sizes] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = known[sizes]

    return init


def _by_slices(interpreter: Any) -> Any:
    return _reduce_slices


def _reduce_slices(self: Any, input: Any) -> Any:
    """``generic_reduce`` of Triton: from left to right along the axis, all else at once."""
    whole = self.axis is None
    input, axis = self.unravel(input, self.axis)
    arrays = [argument.handle.data for argument in input]
    dtypes = [argument.dtype for argument in input]

    def slices(index: int) -> tuple[Any, ...]:
        return tuple(
            self.to_tensor(np.take(array, index, axis), dtype) for array, dtype in zip(arrays, dtypes, strict=True)
        )

    reduced = slices(0)
    for index in range(1, arrays[0].shape[axis]):
        combined = self.combine_fn.fn(*reduced, *slices(index))
        combined = combined if isinstance(combined, tuple) else (combined,)
        reduced = tuple(
            self.to_tensor(value.handle.data.reshape(before.handle.data.shape), dtype)
            for value, before, dtype in zip(combined, reduced, dtypes, strict=True)
        )
    result = []
    for value, dtype, array in zip(reduced, dtypes, arrays, strict=True):
        data = value.handle.data.reshape(array.shape[:axis] + array.shape[axis + 1 :])
        if self.keep_dims:
            data = data.reshape((1,) * array.ndim) if whole else np.expand_dims(data, axis)
        elif whole:
            data = data.item()
        result.append(self.to_tensor(data, dtype))
    return result
