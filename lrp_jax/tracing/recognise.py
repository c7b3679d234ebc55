"""From equations to operations of the rules: what each equation of a program is, and where its attention is."""

from __future__ import annotations

from typing import Any

from lrp_jax.program import Equation, Program, Variable, parts_of_scan
from lrp_jax.tracing import operations, products
from lrp_jax.tracing.operations import Operation
from lrp_jax.tracing.steps import Choice, Loop, Recognised, Site, Step
from lrp_jax.tracing.units import ELEMENTWISE, MOVES, Unit, find


def recognise(program: Program, pixels: set[Variable], unknown: list[Equation]) -> Recognised:
    """What the equations of a program are to the rules.

    Args:
        program: the program, active variables marked.
        pixels: what is still pixels: the example, if it is an image; the first product on its way is ``patch_embed``.
        unknown: where equations go that no operation is known of.

    Returns:
        The program in operations; not to be run if anything is unknown.
    """
    return _Recogniser(program, pixels, unknown).run()


_AFFINE = frozenset({"add", "add_any", "sub", "mul", "div", "neg", "convert_element_type"})


def _changes(equation: Equation, variable: Variable) -> bool:
    """Whether an equation shifts, may change a sign, or scales features differently."""
    if equation.primitive in {"add", "add_any", "sub", "neg"}:
        return True
    others = [v for v in equation.inputs if v is not variable]
    return any(v.constant is None or bool(v.shape) or float(v.constant) < 0 for v in others)


def spans(program: Program) -> list[tuple[int, int]]:
    """First and last of the equations that are one operation together, or attention from its scores to its product."""
    recogniser = _Recogniser(program, set(), [])
    recogniser.look()
    place = {e: i for i, e in enumerate(program.equations)}
    together = [[place[e] for e in unit.equations] for unit in recogniser.unit_of.values()]
    together += [[place[e] for e in (product, *chain)] for product, chain in recogniser.folds.values()]
    together += [[place[scores], place[product]] for scores, product in recogniser.pairs]
    return [(min(places), max(places)) for places in together]


class _Recogniser:
    def __init__(self, program: Program, pixels: set[Variable], unknown: list[Equation]) -> None:
        self.program, self.pixels, self.unknown = program, set(pixels), unknown
        self.unit_of = {unit.output: unit for unit in find(program)}
        inside = {e for unit in self.unit_of.values() for e in unit.equations}
        self.alone = [e for e in program.equations if e not in inside]
        self.alone_set = set(self.alone)
        self.maker: dict[Variable, Equation | Unit] = {v: e for e in self.alone for v in e.outputs}
        self.maker |= self.unit_of
        self.sites: dict[Variable, Site] = {}
        self.scores: set[Equation] = set()
        self.pairs: list[tuple[Equation, Equation]] = []
        self.masked: set[Equation] = set()  # between scores and softmax
        self.readers: dict[Variable, list[Equation]] = {}
        for equation in program.equations:
            for variable in dict.fromkeys(equation.inputs):
                self.readers.setdefault(variable, []).append(equation)
        # Products with the scales that follow them, by the last equation; and what is part of one.
        self.folds: dict[Equation, tuple[Equation, list[Equation]]] = {}
        self.parts: set[Equation] = set()

    def look(self) -> None:
        """Find what is recognised by more than one equation."""
        for equation in self.alone:
            if equation.primitive == "dot_general" and len(equation.active) == 2:
                self.look_for_attention(equation)
        for equation in self.alone:
            self.fold(equation)
        for unit in list(self.unit_of.values()):
            if unit.kind == "layer_norm":
                self.extend(unit)

    def run(self) -> Recognised:
        """The program in operations."""
        self.look()
        steps: list[Step] = []
        for equation in self.program.equations:
            if equation in self.parts:
                continue
            if equation in self.alone_set:
                steps.append(self.of_equation(equation))
            elif equation.outputs[0] in self.unit_of:
                steps.append(self.of_unit(self.unit_of[equation.outputs[0]]))
            else:
                continue
            steps += [self.sites[v] for v in steps[-1].outputs if v in self.sites]
        return Recognised(self.program.inputs, self.program.outputs, self.replaced(steps))

    def replaced(self, steps: list[Step]) -> list[Step]:
        """With the attention that a site gives in the place of what it is given, in the product (and what it reads)."""
        replacement: dict[Variable, Variable] = {}
        for step in steps:
            readers = step.inputs
            if not isinstance(step, Site) and any(v in replacement for v in readers):
                step.inputs = tuple(replacement.get(v, v) for v in readers)
            if isinstance(step, Site):
                replacement[step.inputs[0]] = step.outputs[0]
        self.program.outputs[:] = [replacement.get(v, v) for v in self.program.outputs]
        return steps

    def of_unit(self, unit: Unit) -> Step:
        inputs = (unit.input, *unit.constants)
        return Step(operations.of_unit(unit), inputs, (unit.output,), tuple(unit.equations))

    def of_equation(self, equation: Equation) -> Step:
        """What one equation is."""
        given, made = equation.inputs, equation.outputs
        if not any(v.active for v in made):
            return Step(None, given, made, (equation,))
        if equation in self.folds:
            product, chain = self.folds[equation]
            side = [v.active for v in product.inputs].index(True)
            constants = [v for e in chain for v in e.inputs if not v.active and v.constant is None]
            constants = list(dict.fromkeys(constants))
            inputs = (product.inputs[side], product.inputs[1 - side], *constants)
            folded = products.folded(product, chain, constants, self.is_pixels(product))
            return Step(folded, inputs, made, (product, *chain))
        if equation.primitive == "scan":
            return self.loop(equation)
        if equation.primitive == "cond" and not equation.inputs[0].active:
            branches = tuple(
                recognise(branch, self.inner_pixels(given[1:], branch), self.unknown) for branch in equation.programs
            )
            if any(branch.sites for branch in branches):
                self.unknown.append(equation)
            return Choice(Operation("cond"), given, made, (equation,), branches)
        if equation in self.scores:
            operation: Operation | None = products.as_matmul(equation)
        elif self.is_pixels(equation):
            operation = products.as_patch_embed(equation)
        elif equation.primitive in {"add", "add_any"} and equation not in self.masked and self.adds_positions(equation):
            operation = operations.add_constant(equation)
        elif equation.primitive == "mul" and len(equation.active) == 2:
            gates = [i for i, v in enumerate(given) if self.is_activated(v)]
            operation = operations.gated(gates[0] if len(gates) == 1 else None)
        else:
            operation = operations.operation_of(equation)
        if operation is None:
            self.unknown.append(equation)
        elif self.pixels.issuperset(equation.active) and (
            operation.name == "move" or equation.primitive in {"mul", "div", "sub", "add", "neg"}
        ):
            self.pixels.update(made)
        weighted = self.weights(equation) if operation is not None and operation.name == "multiply" else frozenset()
        return Step(operation, given, made, (equation,), weighted=weighted)

    def is_activated(self, variable: Variable) -> bool:
        """Whether a variable is what an activation gives, moved and scaled: one of two factors that is, is the gate."""
        maker = self.maker.get(variable)
        while isinstance(maker, Equation) and not maker.inner and len(maker.active) == 1:
            if maker.primitive not in MOVES | _AFFINE:
                return maker.primitive in ELEMENTWISE
            maker = self.maker.get(maker.active[0])
        return bool(maker.inner) if isinstance(maker, Equation) else maker is not None and maker.kind == "activation"

    def weights(self, equation: Equation) -> frozenset[int]:
        """Over how many values a factor is a softmax: a weighted sum may be written so."""
        softmaxes = [self.softmax_of(variable)[0] for variable in equation.active]
        return frozenset().union(*(unit.reduced for unit in softmaxes if unit is not None))

    def fold(self, first: Equation) -> None:
        """See whether scales and shifts follow a product with parameters, of its output features alone."""
        product = first.primitive in {"dot_general", "conv_general_dilated"} and len(first.active) == 1
        if not product or first in self.scores or products.is_scale(first):
            return
        if first.primitive == "conv_general_dilated" and not first.inputs[0].active:
            return
        _, features = products.kernel_to_output(first)
        chain = self.affine_after(first.outputs[0], set(features))
        if chain:
            self.folds[chain[-1]] = (first, chain)
            self.parts |= {first, *chain[:-1]}

    def extend(self, unit: Unit) -> None:
        """Take the scales and shifts of features that follow a norm for parts of it."""
        chain = self.affine_after(unit.output, {len(unit.output.shape) - 1})
        if chain:
            del self.unit_of[unit.output], self.maker[unit.output]
            unit.equations, unit.output = [*unit.equations, *chain], chain[-1].outputs[0]
            self.unit_of[unit.output] = self.maker[unit.output] = unit
            self.alone = [e for e in self.alone if e not in chain]
            self.alone_set -= set(chain)

    def affine_after(self, variable: Variable, features: set[int]) -> list[Equation]:
        """The scales and shifts of some axes alone that follow a variable, up to the last that makes a difference."""
        chain: list[Equation] = []
        changed, shape = 0, variable.shape
        while variable not in self.program.outputs and len(self.readers.get(variable, ())) == 1:
            (equation,) = self.readers[variable]
            if equation not in self.alone_set or equation.primitive not in _AFFINE or len(equation.active) != 1:
                break
            if equation.inputs.count(variable) != 1 or equation.outputs[0].shape != shape:
                break
            varying = set().union(*(self.varying(v) for v in equation.inputs if v is not variable))
            if not varying <= features or (equation.primitive == "div" and equation.inputs[1] is variable):
                break
            chain.append(equation)
            if _changes(equation, variable):
                changed = len(chain)
            (variable,) = equation.outputs
        return chain[:changed]

    def is_pixels(self, equation: Equation) -> bool:
        """Whether an equation is a product of pixels with parameters."""
        if equation.primitive not in {"dot_general", "conv_general_dilated"}:
            return False
        active = equation.active
        return len(active) == 1 and active[0] in self.pixels and operations.operation_of(equation) is not None

    def adds_positions(self, equation: Equation) -> bool:
        """Whether a constant is added that differs from token to token: an addition, not a bias."""
        if [v.active for v in equation.inputs].count(True) != 1:
            return False
        (place,) = (i for i, v in enumerate(equation.inputs) if not v.active)
        varying = self.varying(equation.inputs[place])
        if len(varying) < 2:
            return False
        other = equation.inputs[1 - place]
        maker = self.maker.get(other)
        # A bias of a product varies along the axes of its kernel.
        if isinstance(maker, Equation) and maker.primitive == "dot_general":
            first = [v.active for v in maker.inputs].index(True)
            free = products.free_axes(maker, 1 - first)
            return not varying <= set(free)
        return True

    def varying(self, constant: Variable) -> set[int]:
        """The axes along which a constant may vary."""
        axes = {i for i, size in enumerate(constant.shape) if size > 1}
        maker = self.maker.get(constant)
        if isinstance(maker, Equation):
            if maker.primitive == "broadcast_in_dim":
                inner = self.varying(maker.inputs[0])
                dims = maker.params["broadcast_dimensions"]
                return {dims[i] for i in inner if i < len(dims)}
            if maker.primitive in {"convert_element_type", "copy", "neg"}:
                return self.varying(maker.inputs[0])
        if constant.constant is not None and not constant.shape:
            return set()
        return axes

    def inner_pixels(self, given: Any, program: Program) -> set[Variable]:
        return {inner for outer, inner in zip(given, program.inputs, strict=True) if outer in self.pixels}

    def loop(self, equation: Equation) -> Step:
        """A scan."""
        consts, carry = parts_of_scan(equation)
        body = recognise(equation.programs[0], set(), self.unknown)
        if equation.params["reverse"] and body.sites:
            self.unknown.append(equation)
        return Loop(
            Operation("scan"),
            equation.inputs,
            equation.outputs,
            (equation,),
            body,
            consts,
            carry,
            equation.params["length"],
        )

    # Attention: a product one of whose operands comes through a softmax from another product.

    def look_for_attention(self, product: Equation) -> None:
        for side in (0, 1):
            softmax, path = self.softmax_of(product.inputs[side])
            if softmax is None:
                continue
            found, between = self.scores_of(softmax.input)
            site = self.site(product, side, found[0], path) if found else None
            if site is None:
                continue
            site = self.sites.setdefault(site.inputs[0], site)  # one attention may go into several products
            site.products += [product, *found]
            self.scores.update(found)
            self.pairs.append((found[0], product))
            self.masked |= between
            return

    def softmax_of(self, variable: Variable) -> tuple[Unit | None, list[Equation | Unit]]:
        """The softmax that a variable comes from by moves, scales and casts, and what lies between."""
        path: list[Equation | Unit] = []
        while True:
            maker = self.maker.get(variable)
            if maker is None:
                return None, path
            if isinstance(maker, Unit):
                if maker.kind == "softmax":
                    return maker, path
                if maker.kind == "layer_norm":
                    return None, path
                path.append(maker)
                variable = maker.input
                continue
            active = maker.active
            if maker.inner & {"exp"} and "reduce_sum" in maker.inner and len(active) == 1:
                return Unit("softmax", active[0], maker.outputs[0], [maker]), path
            if len(active) != 1 or not (self.passes(maker) or self.mixes_heads(maker)):
                return None, path
            path.append(maker)
            variable = active[0]

    def scores_of(self, variable: Variable) -> tuple[list[Equation], set[Equation]]:
        """The products of queries and keys that a softmax is of, the first of them first, and what lies between."""
        between: set[Equation] = set()
        waiting, found, seen = [variable], [], set()
        while waiting:
            v = waiting.pop()
            maker = self.maker.get(v)
            if v in seen or maker is None:
                continue
            seen.add(v)
            if isinstance(maker, Unit):
                if maker.kind not in {"layer_norm", "softmax"}:
                    waiting.append(maker.input)
                continue
            if maker.primitive == "dot_general" and not products.is_scale(maker):
                batched = bool(maker.params["dimension_numbers"][1][0])
                if len(maker.active) == 2 or all(u.active for u in maker.inputs):
                    found.append(maker)
                elif self.mixes_heads(maker):
                    waiting += maker.active
                elif batched:
                    found.append(maker)
                continue
            if self.passes(maker) or maker.primitive in {"add", "add_any", "sub", "tanh", "max", "min", "concatenate"}:
                between.add(maker)
                waiting += maker.active
        return sorted(found, key=self.program.equations.index), between

    def passes(self, equation: Equation) -> bool:
        """Whether it moves, casts, scales, shifts or chooses one active value."""
        one = len(equation.active) == 1
        return (equation.primitive in MOVES | {"mul", "div", "add", "sub"} and one) or products.is_scale(equation)

    def mixes_heads(self, equation: Equation) -> bool:
        """Whether a product with parameters mixes heads of attention: a square kernel, of one contracted axis."""
        if equation.primitive != "dot_general" or len(equation.active) != 1:
            return False
        first = [v.active for v in equation.inputs].index(True)
        contracted, batch = equation.params["dimension_numbers"]
        last = len(equation.inputs[first].shape) - 1
        kernel = equation.inputs[1 - first].shape
        return (
            not batch[0]
            and len(contracted[0]) == 1
            and len(kernel) == 2
            and kernel[0] == kernel[1]
            and contracted[first][0] < last  # the last axis is of features, or of keys
        )

    def site(self, product: Equation, side: int, scores: Equation, path: list[Equation | Unit]) -> Site | None:
        """Where the attention goes into a product; None: it has not the axes of attention."""
        operand = product.inputs[side]
        _, contracted, free = products.axes(product, side)
        keys = [i for i in contracted if operand.shape[i] > 1] or contracted[-1:]
        if len(keys) != 1:
            return None
        n = operand.shape[keys[0]]
        wide = [i for i in free if operand.shape[i] > 1]
        queries = [i for i in wide if operand.shape[i] == n] or wide or free
        query = queries[-1] if queries else None
        heads = tuple(i for i in range(len(operand.shape)) if i not in (query, keys[0]))
        attention, rows = operand, None
        # The queries that are not read may have been left out: taps are added before.
        for maker in path:
            if query is None or not isinstance(maker, Equation) or maker.primitive != "slice":
                break
            whole = maker.active[0]
            starts, limits = maker.params["start_indices"], maker.params["limit_indices"]
            if len(whole.shape) != len(attention.shape) or maker.params["strides"] not in (None, (1,) * len(starts)):
                break
            if any(whole.shape[i] != attention.shape[i] for i in range(len(whole.shape)) if i != query):
                break
            attention, rows = whole, (starts[query], limits[query])
        tapped = Variable(attention.shape, attention.dtype, True)
        learned = not all(v.active for v in scores.inputs)
        return Site(
            Operation("attention"),
            (attention,),
            (tapped,),
            (product,),
            heads,
            query,
            keys[0],
            product,
            1 - side,
            learned,
            [],
            rows,
        )
