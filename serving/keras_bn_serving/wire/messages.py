"""TF Serving's messages and configuration files, built in a private descriptor pool.

Generated modules would register `tensorflow/core/framework/tensor.proto` in protobuf's default pool,
where TensorFlow and tensorflow-serving-api register theirs: whoever is imported second fails unless the
bytes are equal. A pool of our own never meets theirs, and costs no generated code.

The schema is TF Serving's in field names and numbers, with two liberties that the wire format allows: an
enum is declared int32, and a *packed* repeated field of fixed-size values is declared `bytes`, since that
is what it is on the wire. NumPy then reads it with no loop over the values.

The messages of configuration files are those that tensorflow-serving-api leaves out. Except for
SavedModelConfig, they are only ever read as text, so their field numbers do not matter.
"""

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_SCHEMA = """
message Int64Value { int64 value = 1; }
message BoolValue { bool value = 1; }
message StringValue { string value = 1; }
message Any { string type_url = 1; bytes value = 2; }
message ModelSpec {
  string name = 1; Int64Value version = 2; string signature_name = 3; string version_label = 4;
}
message StatusProto { int32 error_code = 1; string error_message = 2; }

message Dim { int64 size = 1; string name = 2; }
message TensorShapeProto { repeated Dim dim = 2; bool unknown_rank = 3; }
message TensorProto {
  int32 dtype = 1; TensorShapeProto tensor_shape = 2; bytes tensor_content = 4;
  bytes float_val = 5; bytes double_val = 6; repeated int32 int_val = 7; repeated bytes string_val = 8;
  bytes scomplex_val = 9; repeated int64 int64_val = 10; bytes bool_val = 11; bytes dcomplex_val = 12;
  repeated int32 half_val = 13; repeated uint32 uint32_val = 16; repeated uint64 uint64_val = 17;
}

message PredictRequest {
  ModelSpec model_spec = 1; map<string, TensorProto> inputs = 2; repeated string output_filter = 3;
}
message PredictResponse { map<string, TensorProto> outputs = 1; ModelSpec model_spec = 2; }

message BytesList { repeated bytes value = 1; }
message FloatList { repeated float value = 1; }
message Int64List { repeated int64 value = 1; }
message Feature { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3; }
message Features { map<string, Feature> feature = 1; }
message Example { Features features = 1; }
message ExampleList { repeated Example examples = 1; }
message ExampleListWithContext { repeated Example examples = 1; Example context = 2; }
message Input { ExampleList example_list = 1; ExampleListWithContext example_list_with_context = 2; }
message ExamplesRequest { ModelSpec model_spec = 1; Input input = 2; }
message Class { bytes label = 1; float score = 2; }
message Classifications { repeated Class classes = 1; }
message ClassificationResult { repeated Classifications classifications = 1; }
message ClassificationResponse { ClassificationResult result = 1; ModelSpec model_spec = 2; }
message Regression { float value = 1; }
message RegressionResult { repeated Regression regressions = 1; }
message RegressionResponse { RegressionResult result = 1; ModelSpec model_spec = 2; }

message TensorInfo { string name = 1; int32 dtype = 2; TensorShapeProto tensor_shape = 3; }
message SignatureDef {
  map<string, TensorInfo> inputs = 1; map<string, TensorInfo> outputs = 2; string method_name = 3;
  map<string, TensorProto> defaults = 4;
}
message SignatureDefMap { map<string, SignatureDef> signature_def = 1; }
message GetModelMetadataRequest { ModelSpec model_spec = 1; repeated string metadata_field = 2; }
message GetModelMetadataResponse { ModelSpec model_spec = 1; map<string, Any> metadata = 2; }

message GetModelStatusRequest { ModelSpec model_spec = 1; }
message ModelVersionStatus { int64 version = 1; int32 state = 2; StatusProto status = 3; }
message GetModelStatusResponse { repeated ModelVersionStatus model_version_status = 1; }

message Latest { uint32 num_versions = 1; }
message All { }
message Specific { repeated int64 versions = 1; }
message ServableVersionPolicy { Latest latest = 100; All all = 101; Specific specific = 102; }
message ModelConfig {
  string name = 1; string base_path = 2; string model_platform = 4;
  ServableVersionPolicy model_version_policy = 7; map<string, int64> version_labels = 8;
}
message ModelConfigList { repeated ModelConfig config = 1; }
message ModelServerConfig { ModelConfigList model_config_list = 1; }
message ReloadConfigRequest { ModelServerConfig config = 1; }
message ReloadConfigResponse { StatusProto status = 1; }

message SessionOverrides { bool disable_meta_optimizer = 3; }
message SavedModelConfig { SessionOverrides session_overrides = 1; }

message BatchingParameters {
  Int64Value max_batch_size = 1; Int64Value batch_timeout_micros = 2; Int64Value max_enqueued_batches = 3;
  Int64Value num_batch_threads = 4; StringValue thread_pool_name = 5; repeated int64 allowed_batch_sizes = 6;
  bool pad_variable_length_inputs = 7; BoolValue enable_large_batch_splitting = 8;
  Int64Value max_execution_batch_size = 9;
}
message SSLConfig {
  string server_key = 1; string server_cert = 2; string custom_ca = 3; bool client_verify = 4;
}
message PrometheusConfig { bool enable = 1; string path = 2; }
message MonitoringConfig { PrometheusConfig prometheus_config = 1; }
"""

_PACKAGE = "tensorflow.serving"  # the names that error messages show
_FIELD = re.compile(r"(repeated )?(?:map<string, (\w+)>|(\w+)) (\w+) = (\d+);")
_Field = descriptor_pb2.FieldDescriptorProto


def _add_field(message: Any, name: str, number: int, kind: str, repeated: bool) -> None:
    field = message.field.add(name=name, number=number)
    field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    if kind[0].isupper():
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    else:
        field.type = getattr(_Field, f"TYPE_{kind.upper()}")


def _add_message(file: Any, name: str, body: str) -> None:
    message = file.message_type.add(name=name)
    for repeated, map_value, kind, field, number in _FIELD.findall(body):
        if map_value:
            entry = message.nested_type.add(name=field.title().replace("_", "") + "Entry")
            entry.options.map_entry = True
            _add_field(entry, "key", 1, "string", False)
            _add_field(entry, "value", 2, map_value, False)
            kind = f"{name}.{entry.name}"
        _add_field(message, field, int(number), kind, bool(repeated or map_value))


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="keras_bn_serving.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, body in re.findall(r"message (\w+) \{(.*?)\}", _SCHEMA, re.DOTALL):
        _add_message(file, name, body)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(descriptor)
        for name, descriptor in pool.FindFileByName(file.name).message_types_by_name.items()
    }


MESSAGES: dict[str, Any] = _build()
