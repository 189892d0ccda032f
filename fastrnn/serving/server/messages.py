"""The messages of the Open Inference Protocol over gRPC, as Triton numbers their fields.

They live in a descriptor pool of their own. Libraries that generate the same messages into the default pool, such as
tritonclient, kserve and mlserver, can't be imported together; this module can be with any of them. Names and numbers
are those of Triton's grpc_service.proto and model_config.proto (Copyright 2020-2024 NVIDIA Corporation, BSD-3-Clause;
the licence is in LICENSE-triton.txt beside this file), of which only the fields that this server reads or fills are
here. Bytes of other fields are kept as unknown ones.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE, HEALTH_PACKAGE = "inference", "grpc.health.v1"
SERVICE = "inference.GRPCInferenceService"

# Each line is a message and its fields, `name type number`. A type that begins with * is repeated, {X} is a map from
# string to X, and a name after | is that of a oneof.
SCHEMA = """
InferParameter: bool_param bool 1 |kind, int64_param int64 2 |kind, string_param string 3 |kind,
    double_param double 4 |kind, uint64_param uint64 5 |kind
InferTensorContents: bool_contents *bool 1, int_contents *int32 2, int64_contents *int64 3, uint_contents *uint32 4,
    uint64_contents *uint64 5, fp32_contents *float 6, fp64_contents *double 7, bytes_contents *bytes 8
ServerLiveRequest:
ServerLiveResponse: live bool 1
ServerReadyRequest:
ServerReadyResponse: ready bool 1
ServerMetadataRequest:
ServerMetadataResponse: name string 1, version string 2, extensions *string 3
ModelReadyRequest: name string 1, version string 2
ModelReadyResponse: ready bool 1
ModelMetadataRequest: name string 1, version string 2
ModelMetadataResponse.TensorMetadata: name string 1, datatype string 2, shape *int64 3
ModelMetadataResponse: name string 1, versions *string 2, platform string 3, inputs *.TensorMetadata 4,
    outputs *.TensorMetadata 5
ModelInferRequest.InferInputTensor: name string 1, datatype string 2, shape *int64 3, parameters {InferParameter} 4,
    contents InferTensorContents 5
ModelInferRequest.InferRequestedOutputTensor: name string 1, parameters {InferParameter} 2
ModelInferRequest: model_name string 1, model_version string 2, id string 3, parameters {InferParameter} 4,
    inputs *.InferInputTensor 5, outputs *.InferRequestedOutputTensor 6, raw_input_contents *bytes 7
ModelInferResponse.InferOutputTensor: name string 1, datatype string 2, shape *int64 3, parameters {InferParameter} 4,
    contents InferTensorContents 5
ModelInferResponse: model_name string 1, model_version string 2, id string 3, parameters {InferParameter} 4,
    outputs *.InferOutputTensor 5, raw_output_contents *bytes 6
ModelStreamInferResponse: error_message string 1, infer_response ModelInferResponse 2
RepositoryIndexRequest: repository_name string 1, ready bool 2
RepositoryIndexResponse.ModelIndex: name string 1, version string 2, state string 3, reason string 4
RepositoryIndexResponse: models *.ModelIndex 1
ModelConfigRequest: name string 1, version string 2
ModelInput: name string 1, data_type int32 2, dims *int64 4
ModelOutput: name string 1, data_type int32 2, dims *int64 3
ModelSequenceBatching.StrategyOldest: max_candidate_sequences int32 1, max_queue_delay_microseconds uint64 3
ModelSequenceBatching: max_sequence_idle_microseconds uint64 1, oldest .StrategyOldest 4
ModelConfig: name string 1, platform string 2, backend string 17, max_batch_size int32 4, input *ModelInput 5,
    output *ModelOutput 6, sequence_batching ModelSequenceBatching 13
ModelConfigResponse: config ModelConfig 1
StatisticDuration: count uint64 1, ns uint64 2
InferStatistics: success StatisticDuration 1, fail StatisticDuration 2, queue StatisticDuration 3,
    compute_infer StatisticDuration 5
ModelStatistics: name string 1, version string 2, last_inference uint64 3, inference_count uint64 4,
    execution_count uint64 5, inference_stats InferStatistics 6
ModelStatisticsRequest: name string 1, version string 2
ModelStatisticsResponse: model_stats *ModelStatistics 1
"""
HEALTH_SCHEMA = """
HealthCheckRequest: service string 1
HealthCheckResponse: status int32 1
"""

_Field = descriptor_pb2.FieldDescriptorProto


def _file(package: str, schema: str) -> descriptor_pb2.FileDescriptorProto:
    """A schema as protobuf describes files."""
    file = descriptor_pb2.FileDescriptorProto(name=f"fastrnn/{package}.proto", package=package, syntax="proto3")
    made: dict[str, Any] = {}
    nested: list[tuple[str, str]] = []
    for line in schema.replace(",\n    ", ", ").strip().splitlines():
        name, _, fields = line.partition(":")
        if "." in name:
            nested.append((name, fields))
            continue
        made[name] = file.message_type.add(name=name)
        for path, inner in nested:
            if path.startswith(f"{name}."):
                made[path] = made[name].nested_type.add(name=path.partition(".")[2])
                _fill(made[path], path, inner)
        _fill(made[name], name, fields)
    return file


def _fill(message: Any, path: str, fields: str) -> None:
    """Add fields to a message of this name."""
    for text in filter(None, (f.strip() for f in fields.split(","))):
        name, kind, number, *oneof = text.split()
        field = message.field.add(name=name, number=int(number))
        repeated = kind[0] in "*{"
        field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
        if kind[0] == "{":
            kind = f".{PACKAGE}.{path}.{_map_entry(message, name, kind[1:-1])}"
        else:
            kind = kind.lstrip("*")
            own = kind.startswith(".")
            kind = f".{PACKAGE}.{path}{kind}" if own else kind if kind.islower() else f".{PACKAGE}.{kind}"
        if kind.startswith("."):
            field.type, field.type_name = _Field.TYPE_MESSAGE, kind
        else:
            field.type = getattr(_Field, f"TYPE_{kind.upper()}")
        if oneof:
            if not message.oneof_decl:
                message.oneof_decl.add(name=oneof[0][1:])
            field.oneof_index = 0


def _map_entry(message: Any, name: str, value: str) -> str:
    """Add the message of a map's entries; its name."""
    entry = message.nested_type.add(name="".join(part.capitalize() for part in name.split("_")) + "Entry")
    entry.options.map_entry = True
    optional = _Field.LABEL_OPTIONAL
    entry.field.add(name="key", number=1, label=optional, type=_Field.TYPE_STRING)
    entry.field.add(name="value", number=2, label=optional, type=_Field.TYPE_MESSAGE, type_name=f".{PACKAGE}.{value}")
    return entry.name


_pool = descriptor_pool.DescriptorPool()
_classes = {}
for _made in (_file(PACKAGE, SCHEMA), _file(HEALTH_PACKAGE, HEALTH_SCHEMA)):
    _pool.AddSerializedFile(_made.SerializeToString())
    for _one in _made.message_type:
        _found = _pool.FindMessageTypeByName(f"{_made.package}.{_one.name}")
        _classes[_one.name] = message_factory.GetMessageClass(_found)


def message(name: str) -> Any:
    """The class of a message, such as "ModelInferRequest"."""
    return _classes[name]
