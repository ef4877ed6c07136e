"""The mutants of a module: its source with one operator, constant, condition, result or statement changed."""

from __future__ import annotations

import ast
import copy
import itertools
from collections.abc import Iterator
from types import CodeType
from typing import NamedTuple

_COMPARISONS: dict[type[ast.cmpop], ast.cmpop] = {
    ast.Lt: ast.LtE(), ast.LtE: ast.Lt(), ast.Gt: ast.GtE(), ast.GtE: ast.Gt(),
    ast.Eq: ast.NotEq(), ast.NotEq: ast.Eq(), ast.Is: ast.IsNot(), ast.IsNot: ast.Is(),
    ast.In: ast.NotIn(), ast.NotIn: ast.In(),
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], ast.operator] = {
    ast.Add: ast.Sub(), ast.Sub: ast.Add(), ast.Mult: ast.Div(), ast.Div: ast.Mult(), ast.FloorDiv: ast.Mult(),
    ast.Mod: ast.Mult(), ast.BitOr: ast.BitAnd(), ast.BitAnd: ast.BitOr(),
}  # fmt: skip
_SPOKEN = ("Error", "warning", "error", "info", "debug", "exception")
"""Calls whose text is for people: the end of their names."""


class Mutant(NamedTuple):
    """One change. `where` and `change` name it, and stay the same when lines move."""

    module: str
    index: int
    line: int
    where: str
    """The class and function."""
    change: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line} {self.where}: {self.change}"


def mutants(module: str, source: str) -> list[Mutant]:
    """All of them, from the first line to the last.

    Docstrings, annotations, decorators and what only type checkers read are left as they are; so are texts for people,
    which are those with a space in them and those that an error or a log is made with.
    """
    return [
        Mutant(module, index, site.line, site.where, f"{_text(site.node)} -> {_text(site.new)}")
        for index, site in enumerate(_sites(ast.parse(source)))
    ]


def compiled(mutant: Mutant, source: str, filename: str) -> CodeType:
    """The code of the module with this one change."""
    tree = ast.parse(source)
    site = next(itertools.islice(_sites(tree), mutant.index, None))
    if site.position is None:
        setattr(site.owner, site.field, site.new)
    else:
        getattr(site.owner, site.field)[site.position] = site.new
    return compile(ast.fix_missing_locations(tree), filename, "exec", dont_inherit=True)


class _Site(NamedTuple):
    """A place in a tree, and what may stand there."""

    node: ast.AST
    line: int
    where: str
    owner: ast.AST
    field: str
    position: int | None
    new: ast.AST


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Pass):
        return "nothing"
    return " ".join(ast.unparse(node).split())[:120]


def _sites(owner: ast.AST, where: str = "", *, spoken: bool = False) -> Iterator[_Site]:
    for field, value in ast.iter_fields(owner):
        if field in {"annotation", "returns", "decorator_list", "type_params", "bases"}:
            continue
        for position, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or _unseen(node, owner, field, position):
                continue
            changes = _changes(node, spoken=spoken)
            if field == "test" and isinstance(node, ast.Name | ast.Call | ast.Attribute | ast.NamedExpr):
                changes = itertools.chain(changes, [ast.UnaryOp(ast.Not(), copy.deepcopy(node))])
            for new in changes:
                yield _Site(node, getattr(node, "lineno", 0), where or "module", owner, field, position, new)
            name = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else None
            inner = f"{where}.{name}".lstrip(".") if name else where
            yield from _sites(node, inner, spoken=spoken or _speaks(node))


def _unseen(node: ast.AST, owner: ast.AST, field: str, position: int | None) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring, or `...`
    if isinstance(node, ast.If) and _text(node.test) == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and any(
        "overload" in _text(d) for d in node.decorator_list
    ):
        return True
    if isinstance(node, ast.Assign) and _text(node.targets[0]) in {"__slots__", "__all__"}:
        return True
    if isinstance(node, ast.Call) and _text(node.func) == "TypeVar":
        return True
    if field == "args" and position == 0 and isinstance(owner, ast.Call) and _text(owner.func) == "cast":
        return True
    return isinstance(node, ast.AnnAssign) and _text(node.annotation) == "TypeAlias"


def _speaks(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _text(node.func).endswith(_SPOKEN)


def _changes(node: ast.AST, *, spoken: bool) -> Iterator[ast.AST]:
    """What may stand in the place of `node`."""
    match node:
        case ast.Compare(ops=ops):
            for index, op in enumerate(ops):
                changed = copy.deepcopy(node)
                changed.ops[index] = _COMPARISONS[type(op)]
                yield changed
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), copy.deepcopy(values))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield copy.deepcopy(operand)
        case ast.BinOp(op=op) if type(op) in _ARITHMETIC and not (spoken and isinstance(op, ast.Mod)):
            changed = copy.deepcopy(node)
            changed.op = _ARITHMETIC[type(op)]
            yield changed
        case ast.Constant(value=value):
            if (new := _constant(value, spoken=spoken)) is not None:
                yield ast.Constant(new)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield ast.IfExp(copy.deepcopy(test), copy.deepcopy(orelse), copy.deepcopy(body))
        case ast.Return(value=value) if value is not None and _text(value) not in {"None", "False"}:
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call() | ast.Await()) | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Delete():
            yield ast.Pass()
        case _:
            pass


def _constant(value: object, *, spoken: bool) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str) and value and " " not in value and not spoken:
        return f"{value}X"
    return None
