"""A function's program as a flat list of equations, calls inlined, and what in it depends on the example.

A variable is *active* if it depends differentiably on the example that is explained. Everything else (parameters,
masks, positions, numbers that only choose) is constant to the rules.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
from jax.extend import core
from jax.extend.source_info_util import summarize

from lrp_jax.primitives import CALLS, CHOICES, OWN_DERIVATIVE


@dataclasses.dataclass(eq=False, slots=True)
class Variable:
    """A value of the program.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        active: whether it depends on the example, differentiably.
        constant: its value, where the program has it as a literal or is closed over it.
        own: the dtype in which the program has it, if it is kept in a wider one.
    """

    shape: tuple[int, ...]
    dtype: Any
    active: bool = False
    constant: Any = None
    own: Any = None

    @classmethod
    def like(cls, aval: Any, constant: Any = None) -> Variable:
        """A variable of an abstract value."""
        return cls(tuple(getattr(aval, "shape", ())), getattr(aval, "dtype", None), constant=constant)

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        dtype = self.own or self.dtype
        dtype = getattr(dtype, "name", str(dtype))
        return f"{dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(eq=False, slots=True)
class Equation:
    """One equation.

    Attributes:
        primitive: the name of its primitive.
        inputs: what it reads.
        outputs: what it gives.
        params: the primitive's parameters.
        call: its value, ``(*inputs) -> outputs``, both as sequences.
        source: where it is written, as JAX keeps it.
        programs: the body of a loop, or the branches of a choice.
        inner: the primitives of what it calls, if it is kept whole: a function with a derivative of its own.
        exact: its value in the dtypes of the program, where ``call`` computes in wider ones.
        attends: whether it is the product of attention with values, as the caller says; None: nothing is said.
    """

    primitive: str
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    params: dict[str, Any]
    call: Callable[..., Sequence[Any]]
    source: Any
    programs: tuple[Program, ...] = ()
    inner: frozenset[str] = frozenset()
    exact: Callable[..., Sequence[Any]] | None = None
    attends: bool | None = None

    @property
    def active(self) -> list[Variable]:
        """The active inputs, each once."""
        return [v for v in dict.fromkeys(self.inputs) if v.active]

    @property
    def line(self) -> str:
        """Where it is written: file, line, column and function."""
        return str(summarize(self.source))

    @property
    def place(self) -> str:
        """File and line, as ``"model.py:12"``."""
        line = re.match(r".*?:\d+", self.line)
        return line.group() if line else self.line

    def __str__(self) -> str:
        return f"{self.primitive} of {' and '.join(map(str, self.inputs))} ({self.line})"


@dataclasses.dataclass(eq=False)
class Program:
    """Equations in order.

    Attributes:
        inputs: what it is given.
        outputs: what it gives.
        equations: in an order in which they can be run.
        opened: the functions with a derivative of their own that were inlined, as if each were one equation.
    """

    inputs: list[Variable]
    outputs: list[Variable]
    equations: list[Equation]
    opened: list[Equation] = dataclasses.field(default_factory=list)

    def walk(self) -> Iterator[Equation]:
        """Every equation, those inside of loops and choices after them."""
        for equation in self.equations:
            yield equation
            for program in equation.programs:
                yield from program.walk()


def flatten(jaxpr: Any, whole: Callable[[frozenset[str]], bool]) -> Program:
    """A program of a (closed) jaxpr, its calls inlined.

    Args:
        jaxpr: the jaxpr.
        whole: whether a function with a derivative of its own, made of such primitives, is kept as one equation.

    Returns:
        The program; nothing is active yet.
    """
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    inputs = [Variable.like(v.aval) for v in inner.invars]
    program = Program(inputs, [], [])
    program.outputs = inline(jaxpr, inputs, program, whole, None)
    return program


def inline(jaxpr: Any, arguments: Sequence[Variable], program: Program, whole: Any, caller: Any) -> list[Variable]:
    """Append the equations of a jaxpr that is called; what it gives."""
    inner, constants = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
    environment: dict[Any, Variable] = dict(zip(inner.invars, arguments, strict=True))
    environment |= {v: Variable.like(v.aval, c) for v, c in zip(inner.constvars, constants, strict=False)}

    def read(atom: Any) -> Variable:
        if isinstance(atom, core.Literal):
            return Variable.like(atom.aval, atom.val)
        return environment[atom]

    # A function of a library has one line of the user's for all that it does: the line of the call is meant, as JAX
    # keeps what it traced for the next call.
    lines = {summarize(equation.source_info) for equation in inner.eqns} if caller is not None else ()
    of_library = caller is not None and len(lines) == 1
    for equation in inner.eqns:
        name = equation.primitive.name
        source = caller if of_library else equation.source_info
        inputs = tuple(map(read, equation.invars))
        function, is_own = called(equation), name in OWN_DERIVATIVE
        inside = frozenset(primitives(function)) if is_own else frozenset()
        is_opened = function is not None and not (is_own and whole(inside))
        if is_opened:
            outputs = inline(function, inputs, program, whole, source)
        else:
            outputs = [Variable.like(v.aval) for v in equation.outvars]
        if is_own or not is_opened:
            programs = _programs(equation, whole)
            inside = inside or frozenset({"copy"} if is_own else ())  # one that gives back what it is given
            made = Equation(name, inputs, tuple(outputs), equation.params, _caller(equation), source, programs, inside)
            (program.opened if is_opened else program.equations).append(made)
        environment |= zip(equation.outvars, outputs, strict=True)
    return [read(v) for v in inner.outvars]


def called(equation: Any) -> Any:
    """The jaxpr that an equation calls; None: it is no call."""
    return equation.params.get(CALLS.get(getattr(equation.primitive, "name", equation.primitive)))


def _programs(equation: Any, whole: Any) -> tuple[Program, ...]:
    """The body of a loop, or the branches of a choice."""
    name, params = equation.primitive.name, equation.params
    jaxprs = {"scan": lambda: [params["jaxpr"]], "cond": lambda: params["branches"]}.get(name, list)()
    return tuple(flatten(jaxpr, whole) for jaxpr in jaxprs)


def _caller(equation: Any) -> Callable[..., Sequence[Any]]:
    """What computes an equation."""
    if equation.primitive.name not in CALLS:

        def bind(*values: Any, **changed: Any) -> Sequence[Any]:
            result = equation.primitive.bind(*values, **equation.params | changed)
            return list(result) if equation.primitive.multiple_results else [result]

        return bind

    # How calls are bound differs between versions of JAX: a jaxpr of this equation alone knows.
    variables = list(dict.fromkeys(v for v in equation.invars if not isinstance(v, core.Literal)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a jaxpr that nobody traced
        alone = core.Jaxpr([], variables, equation.outvars, [equation], equation.effects)
        function = core.jaxpr_as_fun(core.ClosedJaxpr(alone, []))

    def call(*values: Any) -> Sequence[Any]:
        given = {v: x for v, x in zip(equation.invars, values, strict=True) if not isinstance(v, core.Literal)}
        return list(function(*(given[v] for v in variables)))

    return call


def primitives(jaxpr: Any) -> set[str]:
    """The names of the primitives of a jaxpr and of what it calls."""
    names: set[str] = set()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = equation.primitive.name
        names |= primitives(equation.params[CALLS[name]]) if name in CALLS else {name}
    return names


def prune(program: Program) -> None:
    """Leave out the equations that nothing reads."""
    needed = set(program.outputs)
    kept = []
    for equation in reversed(program.equations):
        if needed.isdisjoint(equation.outputs):
            continue
        kept.append(equation)
        needed.update(equation.inputs)
        for inner in equation.programs:
            prune(inner)
    program.equations = kept[::-1]


def activate(program: Program, active: Sequence[bool]) -> list[bool]:
    """Mark what depends on the active inputs; whether each output does."""
    for variable, is_active in zip(program.inputs, active, strict=True):
        variable.active = is_active
    for equation in program.equations:
        depends = [v.active for v in equation.inputs]
        outputs = [any(depends)] * len(equation.outputs)
        if equation.primitive in CHOICES:
            outputs = [False] * len(outputs)
        elif equation.primitive == "scan" and any(depends):
            outputs = _activate_scan(equation, depends)
        elif equation.primitive == "cond" and any(depends[1:]):
            branches = [activate(branch, depends[1:]) for branch in equation.programs]
            outputs = [any(b) for b in zip(*branches, strict=True)]
        for variable, is_active in zip(equation.outputs, outputs, strict=True):
            variable.active = is_active and jnp.issubdtype(variable.dtype, jnp.inexact)
    return [v.active for v in program.outputs]


def deactivate(program: Program) -> None:
    """Leave active only what reaches an active output by derivatives: not the maximum that a softmax subtracts."""
    needed = {v for v in program.outputs if v.active}
    for equation in reversed(program.equations):
        if needed.isdisjoint(equation.outputs):
            for variable in equation.outputs:
                variable.active = False
            continue
        needed.update(v for v in equation.inputs if v.active)
        for inner in equation.programs:
            deactivate(inner)


class _Computes(Protocol):
    """What is computed of some variables: an equation, or a step of equations."""

    @property
    def active(self) -> list[Variable]: ...

    @property
    def outputs(self) -> tuple[Variable, ...]: ...


def dominators(inputs: Sequence[Variable], parts: Sequence[_Computes]) -> dict[Variable, Variable | None]:
    """The immediate dominator of each active variable: the last that all paths to it pass through, if there is one.

    Args:
        inputs: of the program.
        parts: what it computes, in order.

    Returns:
        The dominators by variable; None for the inputs, and where paths from several inputs meet.
    """
    immediate: dict[Variable, Variable | None] = {v: None for v in inputs if v.active}
    depth: dict[Variable | None, int] = {None: 0} | dict.fromkeys(immediate, 1)

    def common(a: Variable | None, b: Variable | None) -> Variable | None:
        while a is not b:
            if depth[a] < depth[b]:
                a, b = b, a
            assert a is not None  # it is the deeper one
            a = immediate[a]
        return a

    above: Variable | None
    for part in parts:
        made = [v for v in part.outputs if v.active]
        if made:
            above, *others = part.active
            for other in others:
                above = common(above, other)
            immediate |= dict.fromkeys(made, above)
            depth |= dict.fromkeys(made, depth[above] + 1)
    return immediate


def parts_of_scan(equation: Equation) -> tuple[int, int]:
    """How many inputs of a scan are constants, and how many are carried.

    What is carried has one shape inside and outside; how parameters count it differs between versions of JAX.
    """
    (body,) = equation.programs
    carry = sum(a.shape == b.shape for a, b in zip(equation.outputs, body.outputs, strict=True))
    same = sum(a.shape == b.shape for a, b in zip(equation.inputs, body.inputs, strict=True))
    return same - carry, carry


def _activate_scan(equation: Equation, depends: list[bool]) -> list[bool]:
    """Which outputs of a loop depend on its active inputs: once around for all that turns out to be carried."""
    consts, carry = parts_of_scan(equation)
    while True:
        results = activate(equation.programs[0], depends)
        carried = [a or b for a, b in zip(depends[consts : consts + carry], results[:carry], strict=True)]
        if carried == depends[consts : consts + carry]:
            return results
        depends = depends[:consts] + carried + depends[consts + carry :]
