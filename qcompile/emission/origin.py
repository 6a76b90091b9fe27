"""What an emitted file says of where it comes from: all that its source said, and what was done here."""

from __future__ import annotations

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from qcompile.ir.protos import nodes_of
from qcompile.qmodel import QModel
from qcompile.versions import version_of

Noted = GraphProto | NodeProto | ValueInfoProto
PREFIX = "qcompile."  # of our keys
NOTE = "qcompile: "  # begins our notes of nodes, which mean nothing in a file that is made of ours


def tell_origin(emitted: ModelProto, model: QModel) -> None:
    """Copy the source's metadata and notes into `emitted`, and add ours: the same run gives the same bytes.

    Kept are types and shapes of inputs and outputs as they are declared, the model's documentation, producer, domain,
    version and properties, the graph's name, notes and properties, and those of inputs, outputs and the nodes that
    are still there under their names.
    """
    source = model.source
    for field in ("doc_string", "domain", "model_version", "producer_name", "producer_version"):
        if source.HasField(field):
            setattr(emitted, field, getattr(source, field))
    emitted.graph.name = source.graph.name or emitted.graph.name
    _copy_notes(source.graph, emitted.graph)
    values = {item.name: item for item in (*source.graph.input, *source.graph.output)}
    for item in (*emitted.graph.input, *emitted.graph.output):
        if item.name in values:
            if _is_declared(values[item.name]):
                item.type.CopyFrom(values[item.name].type)  # no size is told or named that the source leaves open
            _copy_notes(values[item.name], item)
    nodes = {node.name: node for node in nodes_of(source) if node.name}
    for node in nodes_of(emitted):
        if (old := nodes.get(node.name)) is not None and old.op_type == node.op_type:
            _copy_notes(old, node)
    facts = {item.key: item.value for item in source.metadata_props}
    for key, value in (facts | {f"{PREFIX}{key}": value for key, value in ours(model).items()}).items():
        emitted.metadata_props.add(key=key, value=value)


def _is_declared(item: ValueInfoProto) -> bool:
    """Say whether type and rank are there, which ONNX wants of a border."""
    kind, tensor = item.type.WhichOneof("value"), item.type.tensor_type
    return tensor.elem_type != 0 and tensor.HasField("shape") if kind == "tensor_type" else kind is not None


def _copy_notes(old: Noted, new: Noted) -> None:
    if old.doc_string and not old.doc_string.startswith(NOTE):
        new.doc_string = old.doc_string
    for item in getattr(old, "metadata_props", ()):  # which older versions of onnx do not know
        new.metadata_props.add(key=item.key, value=item.value)


def ours(model: QModel) -> dict[str, str]:
    """Return what we say of the file: `source` is the fingerprint, `recipe` a hash of the settings that decided."""
    plan = model.plan
    facts = {
        "bits": plan.precision(),
        "target": model.target.identity,
        "recipe": plan.recipe,
        "source": model.fingerprint,
    }
    return {"version": version_of("qcompile"), **facts}
