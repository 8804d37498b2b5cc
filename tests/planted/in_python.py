"""The faults that a Python file could have, by the positions of its syntax tree.

Left alone: docstrings, f-strings and what is said to the user, `raise`, annotations, decorators.
"""

from __future__ import annotations

import ast
import re

from .fault import Fault, change

FLIPPED = {
    ast.Lt: (r"<", ">", "<="),
    ast.LtE: (r"<=", ">=", "<"),
    ast.Gt: (r">", "<", ">="),
    ast.GtE: (r">=", "<=", ">"),
    ast.Eq: (r"==", "!=", None),
    ast.NotEq: (r"!=", "==", None),
    ast.In: (r"\bin\b", "not in", None),
    ast.NotIn: (r"\bnot\s+in\b", "in", None),
    ast.Is: (r"\bis\b", "is not", None),
    ast.IsNot: (r"\bis\s+not\b", "is", None),
}
SPOKEN = {"warn", "warning", "print", "echo", "secho", "info", "debug", "Option", "Argument", "TypeVar"}
# Either order is the same, or crashes at once.
SYMMETRIC = {"min", "max", "minimum", "maximum", "add", "mul", "gcd", "lcm", "allclose", "equal", "array_equal"}
SYMMETRIC |= {"isinstance", "issubclass", "hasattr", "getattr", "setattr"}


def faults(file: str, text: str) -> list[Fault]:
    finder = _Finder(file, text)
    finder.visit(ast.parse(text))
    return finder.found


def is_valid(text: str) -> bool:
    try:
        compile(text, "planted", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_check(node: ast.If) -> bool:
    return not node.orelse and isinstance(node.body[-1], ast.Raise)


def _is_text(node: ast.expr) -> bool:
    strings = (n for n in ast.walk(node) if isinstance(n, ast.JoinedStr | ast.Constant))
    return any(isinstance(n, ast.JoinedStr) or isinstance(n.value, str | bytes) for n in strings)


class _Finder(ast.NodeVisitor):
    def __init__(self, file: str, text: str):
        self.file, self.lines, self.found = file, text.splitlines(), []

    # ---- positions: those of `ast` count bytes ----------------------------------------------------------------------

    def column(self, line: int, offset: int) -> int:
        text = self.lines[line - 1]
        return offset if text.isascii() else len(text.encode()[:offset].decode())

    def start(self, node: ast.AST) -> int:
        return self.column(node.lineno, node.col_offset)

    def end(self, node: ast.AST) -> int:
        return self.column(node.end_lineno, node.end_col_offset)

    def source(self, node: ast.AST) -> str:
        return self.lines[node.lineno - 1][self.start(node) : self.end(node)]

    def edit(self, kind: str, line: int, start: int, end: int, new: str) -> None:
        fault = change(self.file, line, kind, self.lines[line - 1], start, end, new)
        if fault:
            self.found.append(fault)

    def replace(self, kind: str, node: ast.AST, new: str) -> None:
        if node.lineno == node.end_lineno:
            self.edit(kind, node.lineno, self.start(node), self.end(node), new)

    def between(self, kind: str, left: ast.AST, right: ast.AST, pattern: str, new: str | None) -> None:
        """Replaces the operator between two operands."""
        if new is None or left.end_lineno != right.lineno:
            return
        found = re.compile(pattern).search(self.lines[right.lineno - 1], self.end(left), self.start(right))
        if found:
            self.edit(kind, right.lineno, *found.span(), new)

    def grouped(self, node: ast.AST) -> str:
        atoms = ast.Name | ast.Attribute | ast.Call | ast.Constant | ast.Subscript
        return self.source(node) if isinstance(node, atoms) else f"({self.source(node)})"

    # ---- operators --------------------------------------------------------------------------------------------------

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) == 1 and _name(node.left) != "__name__":
            pattern, flipped, boundary = FLIPPED[type(node.ops[0])]
            self.between("flipped comparison", node.left, node.comparators[0], pattern, flipped)
            self.between("boundary", node.left, node.comparators[0], pattern, boundary)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if type(node.value) is int and self.source(node).isdecimal():
            self.replace("off by one", node, str(node.value + 1))

    def visit_Slice(self, node: ast.Slice) -> None:
        self.one_less(node.upper)
        self.generic_visit(node)

    def one_less(self, bound: ast.expr | None) -> None:
        if (
            bound
            and not isinstance(bound, ast.Constant | ast.UnaryOp | ast.Starred)
            and bound.lineno == bound.end_lineno
        ):
            self.replace("off by one", bound, f"{self.grouped(bound)} - 1")

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div) and node.lineno == node.end_lineno:
            if _is_text(node):
                return
            self.replace("dropped term", node, self.grouped(node.left))
            if isinstance(node.op, ast.Add | ast.Mult):
                self.replace("dropped term", node, self.grouped(node.right))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between("and/or", left, right, rf"\b{old}\b", new)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = _name(node.func)
        if name in SPOKEN:
            return
        if name == "range" and node.args:
            self.one_less(node.args[min(len(node.args), 2) - 1])
        elif name not in SYMMETRIC:
            for left, right in zip(node.args, node.args[1:], strict=False):
                self.swap(left, right)
        self.generic_visit(node)

    def swap(self, left: ast.expr, right: ast.expr) -> None:
        starred = isinstance(left, ast.Starred) or isinstance(right, ast.Starred)
        if starred or left.lineno != right.end_lineno:
            return
        start, end = self.start(left), self.end(right)
        comma = self.lines[left.lineno - 1][self.end(left) : self.start(right)]
        self.edit("swapped arguments", left.lineno, start, end, f"{self.source(right)}{comma}{self.source(left)}")

    def visit_If(self, node: ast.If) -> None:
        if _name(node.test) == "TYPE_CHECKING":
            return
        if _is_check(node):
            self.replace("removed check", node.test, "False")
        else:
            self.negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.negate(node.test)
        self.generic_visit(node)

    def negate(self, test: ast.expr) -> None:
        if test.lineno != test.end_lineno:
            return
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            self.replace("negated condition", test, self.source(test.operand))
        else:
            self.replace("negated condition", test, f"not {self.grouped(test)}")

    # ---- left alone -------------------------------------------------------------------------------------------------

    def visit_Raise(self, node: ast.Raise) -> None: ...

    def visit_Assert(self, node: ast.Assert) -> None: ...

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None: ...

    def visit_arg(self, node: ast.arg) -> None: ...

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        # A module's table of types, such as Annotated[...], is an annotation too.
        if not (isinstance(node.value, ast.Subscript) and _name(node.value.value) in {"Annotated", "Literal"}):
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.visit(node.args)
        for statement in node.body:
            self.visit(statement)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)
