"""A described workflow in the API format, as the frontend would send it to /prompt: for servers that no frontend talks to."""

from __future__ import annotations

from workflows.description import NodeSpec, Workflow

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
OF_THE_FRONTEND = "control_after_generate"  # a widget that the server never hears of


def api_format(workflow: Workflow, object_info: dict[str, dict]) -> dict[str, dict]:
    """Nodes are numbered as described, muted ones left out; `object_info` is the server's, for widgets not described."""
    numbers = {spec.key: str(number) for number, spec in enumerate(workflow.nodes, 1)}
    running = {spec.key: spec for spec in workflow.nodes if not spec.muted}
    graph = {numbers[key]: _node(spec, object_info[spec.type]) for key, spec in running.items()}
    for source, output, target, name in workflow.links:
        if source in running and target in running:
            outputs = object_info[running[source].type]["output_name"]
            slot = output if isinstance(output, int) else outputs.index(output)
            graph[numbers[target]]["inputs"][name] = [numbers[source], slot]
    return graph


def _node(spec: NodeSpec, info: dict) -> dict:
    described = {name: value for name, value in spec.widgets.items() if name != OF_THE_FRONTEND}
    inputs: dict[str, object] = {}
    _add_widgets(inputs, "", info["input"], described)
    if unknown := sorted(set(described) - set(inputs)):
        raise ValueError(f"{spec.type} has no widget {', '.join(unknown)}.")
    return {
        "inputs": inputs,
        "class_type": spec.type,
        "_meta": {"title": spec.title or info["display_name"] or spec.type},
    }


def _add_widgets(inputs: dict[str, object], prefix: str, groups: dict[str, dict], described: dict[str, object]) -> None:
    for group in ("required", "optional"):
        for name, (kind, *rest) in groups.get(group, {}).items():
            options = rest[0] if rest else {}
            if options.get("forceInput") or not (isinstance(kind, list) or kind in (*WIDGETS, DYNAMIC_COMBO)):
                continue
            value = inputs[prefix + name] = described.get(prefix + name, _default(kind, options))
            if kind == DYNAMIC_COMBO:
                [chosen] = [option for option in options["options"] if option["key"] == value]
                _add_widgets(inputs, f"{prefix}{name}.", chosen["inputs"], described)


def _default(kind: str | list, options: dict) -> object:
    if "default" in options:
        return options["default"]
    if kind == DYNAMIC_COMBO:
        return options["options"][0]["key"]
    choices = kind if isinstance(kind, list) else options.get("options", ())
    return next(iter(choices), {"STRING": "", "BOOLEAN": False}.get(str(kind), 0))
