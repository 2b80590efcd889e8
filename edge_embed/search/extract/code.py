"""Source code: a section for each function, and for what stands between them, under the names of their classes.

Tree-sitter reads what is not finished or not quite correct as well. Languages without a grammar here are text, which
is cut at blank lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import PurePath
from typing import Any, Final

from edge_embed.search.extract.text import decode
from edge_embed.search.types import Section

# Module and function of the grammar, and the extensions that it reads.
_GRAMMARS: Final = {
    ("tree_sitter_python", "language"): ".py .pyi .pyw",
    ("tree_sitter_javascript", "language"): ".js .mjs .cjs .jsx",
    ("tree_sitter_typescript", "language_typescript"): ".ts .mts .cts",
    ("tree_sitter_typescript", "language_tsx"): ".tsx",
    ("tree_sitter_java", "language"): ".java",
    ("tree_sitter_c", "language"): ".c",
    ("tree_sitter_cpp", "language"): ".h .cc .cpp .cxx .hh .hpp .hxx .cu .cuh",
    ("tree_sitter_c_sharp", "language"): ".cs",
    ("tree_sitter_go", "language"): ".go",
    ("tree_sitter_rust", "language"): ".rs",
    ("tree_sitter_ruby", "language"): ".rb",
    ("tree_sitter_php", "language_php"): ".php",
    ("tree_sitter_bash", "language"): ".sh .bash",
}
_BY_EXTENSION: Final = {extension: key for key, extensions in _GRAMMARS.items() for extension in extensions.split()}
# What the grammars call that which has a name and a body: kept whole, or looked into.
_FUNCTIONS: Final = {
    "function_definition", "function_declaration", "generator_function_declaration", "function_item", "method",
    "method_declaration", "method_definition", "singleton_method", "constructor_declaration", "destructor_declaration",
    "operator_declaration", "type_declaration",
}  # fmt: skip
_CONTAINERS: Final = {
    "class", "class_declaration", "class_definition", "class_specifier", "abstract_class_declaration",
    "enum_declaration", "enum_item", "impl_item", "interface_declaration", "internal_module", "mod_item", "module",
    "namespace_declaration", "namespace_definition", "record_declaration", "struct_declaration", "struct_item",
    "struct_specifier", "trait_declaration", "trait_item",
}  # fmt: skip
# What stands around a definition and belongs to it.
_WRAPPERS: Final = {"decorated_definition", "export_statement", "template_declaration"}


def read(data: bytes, name: str) -> Iterator[Section]:
    """The sections of a source file."""
    text = decode(data)
    grammar = _BY_EXTENSION.get(PurePath(name).suffix.lower())
    if grammar is None:
        yield Section(text, line=1)
        return
    from tree_sitter import Language, Parser

    module, function = grammar
    source = text.encode()
    tree = Parser(Language(getattr(import_module(module), function)())).parse(source)
    yield from _sections(source, tree.root_node, 0, len(source), ())


def _sections(source: bytes, node: Any, start: int, stop: int, heading: tuple[str, ...]) -> Iterator[Section]:
    """The stretch of a container: its definitions, and what stands before, between and behind them."""
    for inner in _definitions(node):
        name = _name(inner)
        begin, end = _extent(inner, source)
        if not name or begin < start:
            continue
        yield from _section(source, start, begin, heading)
        if inner.type in _CONTAINERS:
            yield from _sections(source, inner, begin, end, (*heading, name))
        else:
            yield from _section(source, begin, end, (*heading, name))
        start = end
    yield from _section(source, start, stop, heading)


def _definitions(node: Any) -> Iterator[Any]:
    """The nearest definitions below a node, in order."""
    waiting = list(reversed(node.named_children))
    while waiting:
        child = waiting.pop()
        if child.type in _FUNCTIONS or child.type in _CONTAINERS:
            yield child
        else:
            waiting += reversed(child.named_children)


def _extent(node: Any, source: bytes) -> tuple[int, int]:
    """Where a definition begins and ends: whole lines, with its decorators and the comment right above it."""
    while node.parent is not None and node.parent.type in _WRAPPERS:
        node = node.parent
    first, end = node, node.end_byte
    before = first.prev_named_sibling
    while before is not None and "comment" in before.type and before.end_point[0] >= first.start_point[0] - 1:
        first, before = before, before.prev_named_sibling
    start = source.rfind(b"\n", 0, first.start_byte) + 1
    rest = source.find(b"\n", end)
    begin = start if not source[start : first.start_byte].strip() else first.start_byte
    return begin, len(source) if rest < 0 else rest + 1 if not source[end:rest].strip(b" \t;,}") else end


def _name(node: Any) -> str:
    """What a definition is called, or an empty string."""
    found = node.child_by_field_name("name")
    inner = node.child_by_field_name("declarator")  # C: the name is what the pointers and parameters stand around
    while found is None and inner is not None:
        found, last = inner.child_by_field_name("name"), inner
        inner = inner.child_by_field_name("declarator")
        if inner is None and (found is None or last.type == "qualified_identifier"):
            found = last
    if found is None:  # Go: in the specification; Rust: an impl goes by its type
        specification = next((child for child in node.named_children if child.type == "type_spec"), node)
        found = specification.child_by_field_name("name") or specification.child_by_field_name("type")
    return "" if found is None else " ".join(found.text.decode("utf-8", "replace").split())[:200]


def _section(source: bytes, start: int, stop: int, heading: tuple[str, ...]) -> Iterator[Section]:
    raw = source[start:stop]
    text = raw.decode("utf-8", "replace")
    if any(character.isalnum() for character in text):
        blank = len(raw) - len(raw.lstrip(b"\n"))
        yield Section(text.strip("\n"), heading, line=source.count(b"\n", 0, start + blank) + 1)
