"""How this repository describes a workflow, or a part of one that becomes a box: without what the frontend adds."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class NodeSpec:
    """One node: `widgets` by name; `size` only where the node's own choice will not do."""

    key: str
    type: str
    pos: tuple[int, int]
    widgets: dict[str, object] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    title: str | None = None
    color: str | None = None
    muted: bool = False


@dataclass(frozen=True)
class Note:
    """A word to the artist, in Markdown."""

    text: str
    pos: tuple[int, int]
    size: tuple[int, int] = (320, 160)
    title: str = "Note"


@dataclass(frozen=True)
class Group:
    title: str
    pos: tuple[int, int]
    size: tuple[int, int]
    color: str = "#3f789e"


@dataclass(frozen=True)
class Workflow:
    """`links`: (key of the source, its output's name or index, key of the target, its input's name or index)."""

    name: str
    nodes: list[NodeSpec]
    links: list[tuple[str, str | int, str, str | int]]
    notes: list[Note] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)


@dataclass(frozen=True)
class Blueprint:
    """`inside`: its nodes, links and groups become the inside of the box.

    inputs: by the name the box shows, (key of an inner node, its socket or widget), several where one value feeds several.
    outputs: by the name the box shows, (key of an inner node, its output).
    """

    name: str
    description: str
    category: str
    inside: Workflow
    inputs: dict[str, list[tuple[str, str]]]
    outputs: dict[str, tuple[str, str]]
    width: int = 360
