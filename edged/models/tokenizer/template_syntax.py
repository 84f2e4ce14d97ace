"""The syntax of chat templates beside Jinja's own, and the counting filters in their syntax tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

from edged.models.tokenizer.template_budget import PER_OPERATION


class Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant writes, for training: its text as it is.

    As in transformers the body is a block of its own, so variables that are set in it end with it.
    """

    tags = {"generation"}  # noqa: RUF012  - Jinja's

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's body, called."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    @staticmethod
    def _body(caller: Callable[[], str]) -> str:
        return caller()


class Counted(NodeTransformer):
    """Puts the counting filters into a syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  - Jinja's name
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_turns")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  - Jinja's name
        self.generic_visit(node)
        return _filter(nodes.Tuple(node.nodes, "load", lineno=node.lineno), "_joined")

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802  - Jinja's name
        self.generic_visit(node)
        return _filter(node, "_weighed")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802  - Jinja's name
        self.generic_visit(node)
        return _filter(node, "_weighed")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802  - Jinja's name
        self.generic_visit(node)
        return _filter(node, "_weighed") if node.ctx == "load" else node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802  - Jinja's name
        self.generic_visit(node)
        node.nodes = [_counted_output(child) for child in node.nodes]
        return node


def _counted_output(child: nodes.Expr) -> nodes.Expr:
    if isinstance(child, nodes.TemplateData):
        if len(child.data) < PER_OPERATION:
            return child
        child = nodes.Const(child.data, lineno=child.lineno)
    return _filter(child, "_out")


def _filter(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast("nodes.Expr", node), name, [], [], None, None, lineno=node.lineno)
