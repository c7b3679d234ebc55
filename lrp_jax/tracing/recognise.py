"""From equations to operations of the rules: what each equation of a program is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from lrp_jax.primitives import ADDITIONS, AFFINE, ELEMENTWISE, MOVES
from lrp_jax.program import Equation, Program, Variable, parts_of_scan
from lrp_jax.tracing import affine, folding, operations, products
from lrp_jax.tracing.attention import Attention
from lrp_jax.tracing.features import Features, Numbers, along_last, is_affine, varying
from lrp_jax.tracing.operations import Operation
from lrp_jax.tracing.rolling import is_stack
from lrp_jax.tracing.steps import Choice, Loop, Recognised, Site, Step
from lrp_jax.tracing.units import Unit, find


def recognise(
    program: Program,
    pixels: set[Variable],
    unknown: list[Equation],
    given: Mapping[Variable, Numbers] | None = None,
) -> Recognised:
    """What the equations of a program are to the rules.

    Args:
        program: the program, active variables marked; changed in place.
        pixels: what is still pixels: the example, if it is an image; the first product on its way is ``patch_embed``.
        unknown: where equations go that no operation is known of.
        given: which features its inputs are of; None: of those that are no pixels, the last axis is of features.

    Returns:
        The program in operations; not to be run if anything is unknown.
    """
    return _Recogniser(program, pixels, unknown, given).run()


def spans(program: Program) -> list[tuple[int, int]]:
    """First and last of the equations that are one operation together, or attention from its scores to its product."""
    recogniser = _Recogniser(program, set(), [], None)
    recogniser.look()
    place = {e: i for i, e in enumerate(program.equations)}
    together = [[place[e] for e in unit.equations] for unit in recogniser.unit_of.values()]
    together += [[place[product], *(place[p.equation] for p in parts)] for product, parts in recogniser.folds.items()]
    together += [[place[scores], place[product]] for _, scores, product, _ in recogniser.attention.found]
    return [(min(places), max(places)) for places in together]


class _Recogniser:
    def __init__(
        self,
        program: Program,
        pixels: set[Variable],
        unknown: list[Equation],
        given: Mapping[Variable, Numbers] | None,
    ) -> None:
        self.program, self.pixels, self.unknown = program, set(pixels), unknown
        self.unit_of = {unit.output: unit for unit in find(program)}
        inside = {e for unit in self.unit_of.values() for e in unit.equations}
        self.alone = [e for e in program.equations if e not in inside]
        self.alone_set = set(self.alone)
        self.maker: dict[Variable, Equation | Unit] = {v: e for e in self.alone for v in e.outputs}
        self.maker |= self.unit_of
        self.readers: dict[Variable, list[Equation]] = {}
        for equation in program.equations:
            for variable in dict.fromkeys(equation.inputs):
                self.readers.setdefault(variable, []).append(equation)
        if given is None:
            given = {v: along_last(v) for v in program.inputs if v.active and v.shape and v not in pixels}
        self.fixed = {e for e in self.alone if products.is_fixed(e, program, self.maker)}
        self.channels = Features(program, self.unit_of, given, self.fixed)
        self.attention = Attention(program, self.maker, self.channels, self.readers)
        self.finder = folding.Finder(program, self.channels, self.readers, self.alone_set)
        self.folds: dict[Equation, list[affine.Part]] = {}
        self.same: dict[Variable, Variable] = {}  # what stands for what parts of products give

    def look(self) -> None:
        """Find what is recognised by more than one equation."""
        self.attention.find(self.alone)
        for unit in list(self.unit_of.values()):
            if unit.kind == "layer_norm":
                self.extend(unit)
        self.folds = self.finder.of_products(self.attention.scores | self.fixed)

    def run(self) -> Recognised:
        """The program in operations."""
        self.look()
        regions = self.attention.regions(lambda program, numbers: recognise(program, set(), [], numbers))
        steps: list[Step] = []
        for equation in self.rewritten():
            if equation in self.alone_set:
                steps.append(self.of_equation(equation))
            elif equation.outputs[0] in self.unit_of:
                steps.append(self.of_unit(self.unit_of[equation.outputs[0]]))
            else:
                continue
            steps[-1].tokens = self.tokens(steps[-1])
            steps += [self.attention.sites[v] for v in steps[-1].outputs if v in self.attention.sites]
        for region, inside in regions:
            region.stands = self.same
            region.steps = [s for s in steps if inside.issuperset(s.equations)]
            for step in region.steps:
                step.region = region
        return Recognised(self.program.inputs, self.program.outputs, self.replaced(steps))

    def tokens(self, step: Step) -> tuple[int, ...] | None:
        """The axes of what an operation gives that are of no features, if the rules see these axes."""
        axes, of = self.channels.axes(step.outputs[0]), step.equations[-1].primitive
        plain = step.operation is not None and step.operation.name in {"layer_norm", "activation"}
        seen = step.equations[0].primitive == "conv_general_dilated" or (plain and of != "dot_general")
        return tuple(i for i in range(len(step.outputs[0].shape)) if i not in axes) if seen and axes else None

    def rewritten(self) -> list[Equation]:
        """The equations without those that are parts of products, whose results stand in their place, and in order."""
        same = self.same
        parts = {part.equation for found in self.folds.values() for part in found}
        for cast in (e for e in self.program.equations if e in parts and folding.casts(e)):
            self.finder.retype(cast)
        for equation in self.program.equations:
            equation.inputs = tuple(same.get(v, v) for v in equation.inputs)
            if equation in parts:
                same[equation.outputs[0]] = equation.active[0]
        self.program.outputs[:] = [same.get(v, v) for v in self.program.outputs]
        for unit in self.unit_of.values():
            unit.input = same.get(unit.input, unit.input)
        for site in self.attention.sites.values():
            site.inputs = tuple(same.get(v, v) for v in site.inputs)
        self.attention.sites = {site.inputs[0]: site for site in self.attention.sites.values()}
        # A product is run after all that is read by what follows it.
        maker = {v: e for e in self.program.equations for v in e.outputs}
        found: dict[Equation, None] = {}

        def put(equation: Equation) -> None:
            for variable in (*equation.inputs, *self.constants(equation)):
                if variable in maker and maker[variable] not in found:
                    put(maker[variable])
            found[equation] = None

        for equation in self.program.equations:
            if equation not in parts and equation not in found:
                put(equation)
        return list(found)

    def constants(self, product: Equation) -> list[Variable]:
        """What the scales and shifts of a product read."""
        read = [v for part in self.folds.get(product, ()) for v in part.constants if v.constant is None]
        return list(dict.fromkeys(read))

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
            side = [v.active for v in given].index(True)
            parts, constants = self.folds[equation], self.constants(equation)
            folded = affine.folded(equation, parts, constants, self.is_pixels(equation))
            inputs = (given[side], given[1 - side], *constants)
            exact = partial(affine.value, equation, parts, constants)
            return Step(folded, inputs, made, (equation, *(part.equation for part in parts)), exact=exact)
        if equation.primitive == "scan":
            return self.loop(equation)
        if equation.primitive == "cond" and not equation.inputs[0].active:
            branches = tuple(self.branch(given[1:], branch) for branch in equation.programs)
            if any(branch.sites for branch in branches):
                self.unknown.append(equation)
            return Choice(Operation("cond"), given, made, (equation,), branches)
        if equation in self.attention.scores:
            operation: Operation | None = products.as_matmul(equation)
        elif equation in self.fixed:
            of_pixels = self.is_pixels(equation)
            operation = products.as_fixed("patch_embed" if of_pixels else "dense", equation)
            if of_pixels:
                self.pixels.update(made)
        elif self.is_pixels(equation):
            operation = products.as_patch_embed(equation)
        elif self.is_shift(equation):
            kind = operations.add_constant if self.adds_positions(equation) else operations.shift
            operation = kind(equation)
        elif (
            equation.primitive == "scatter-add"
            and not given[2].active
            and len(varying(self.channels.constant(given[2]))) > 1
        ):
            operation = operations.add_scattered(equation)
        elif equation.primitive == "mul" and len(equation.active) == 2:
            gates = [i for i, v in enumerate(given) if self.is_activated(v)]
            operation = operations.gated(gates[0] if len(gates) == 1 else None)
        else:
            operation = operations.operation_of(equation)
        if operation is None:
            self.unknown.append(equation)
        elif self.pixels.issuperset(equation.active) and (operation.name == "move" or equation.primitive in AFFINE):
            self.pixels.update(made)
        weighted = self.weights(equation) if operation is not None and operation.name == "multiply" else frozenset()
        return Step(operation, given, made, (equation,), weighted=weighted)

    def is_activated(self, variable: Variable) -> bool:
        """Whether a variable is what an activation gives, moved and scaled: one of two factors that is, is the gate."""
        maker = self.maker.get(variable)
        while isinstance(maker, Equation) and not maker.inner and len(maker.active) == 1:
            if maker.primitive not in MOVES | AFFINE:
                return maker.primitive in ELEMENTWISE
            maker = self.maker.get(maker.active[0])
        return bool(maker.inner) if isinstance(maker, Equation) else maker is not None and maker.kind == "activation"

    def weights(self, equation: Equation) -> frozenset[int]:
        """Over how many values a factor is a softmax: a weighted sum may be written so."""
        softmaxes = [self.attention.softmax_of(variable)[0] for variable in equation.active]
        return frozenset().union(*(unit.reduced for unit in softmaxes if unit is not None))

    def extend(self, unit: Unit) -> None:
        """Take the scales and shifts of features that follow a norm for parts of it."""
        chain = self.finder.after(unit.output)
        if chain:
            del self.unit_of[unit.output], self.maker[unit.output]
            unit.equations, unit.output = [*unit.equations, *chain], chain[-1].outputs[0]
            self.unit_of[unit.output] = self.maker[unit.output] = unit
            self.alone = [e for e in self.alone if e not in chain]
            self.alone_set.difference_update(chain)

    def is_pixels(self, equation: Equation) -> bool:
        """Whether an equation is a product of pixels with parameters."""
        if equation.primitive not in {"dot_general", "conv_general_dilated"}:
            return False
        active = equation.active
        return len(active) == 1 and active[0] in self.pixels and operations.operation_of(equation) is not None

    def is_shift(self, equation: Equation) -> bool:
        """Whether a constant is added to activations; to scores it is a mask, and pixels are shifted by themselves."""
        if not is_affine(equation) or equation in self.attention.masked:
            return False
        adds = equation.primitive in ADDITIONS
        if equation.active[0] in self.pixels:
            return adds and self.adds_positions(equation)
        return adds or (equation.primitive == "sub" and equation.inputs[0].active)

    def adds_positions(self, equation: Equation) -> bool:
        """Whether a constant is added that differs from token to token: an addition, not a bias."""
        (variable,), (constant,) = equation.active, (v for v in equation.inputs if not v.active)
        if variable in self.channels.of and variable.shape == equation.outputs[0].shape:
            return self.channels.places(self.channels.of[variable], constant) is None
        return len(varying(self.channels.constant(constant))) > 1

    def branch(self, given: Iterable[Variable], program: Program) -> Recognised:
        """A branch of a choice."""
        outside = list(zip(program.inputs, given, strict=True))
        pixels = {v for v, outer in outside if outer in self.pixels}
        return recognise(program, pixels, self.unknown, self.channels.inside(outside))

    def loop(self, equation: Equation) -> Step:
        """A scan."""
        consts, carry = parts_of_scan(equation)
        inside = equation.programs[0].inputs
        numbers = self.channels.inside(zip(inside, equation.inputs, strict=True), given=inside[consts + carry :])
        body = recognise(equation.programs[0], set(), self.unknown, numbers)
        if equation.params["reverse"] and body.sites:
            self.unknown.append(equation)
        given = ((v, self.maker.get(v)) for v in equation.inputs[consts + carry :])
        each = {v: maker.inputs for v, maker in given if isinstance(maker, Equation) and is_stack(maker)}
        length = equation.params["length"]
        return Loop(
            Operation("scan"), equation.inputs, equation.outputs, (equation,), body, consts, carry, length, each
        )
