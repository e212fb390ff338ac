#!/usr/bin/env python3
"""Write the SavedModels that the golden vectors were recorded on.

    python make_models.py OUT_DIR

Plain TensorFlow, deterministic (no random numbers), a few hundred kilobytes. Graph (TF1 form) models are
written straight as MetaGraphDefs, so aliases, tensor names, method names and signature defaults are under
control; `matmul`, `tf2_multi` and `tf2_three` are ordinary TF2 exports. Layout:
OUT_DIR/NAME/VERSION/saved_model.pb ...
"""

import os
import shutil
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

v1 = tf.compat.v1
PREDICT = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"


def info(t):
    out = meta_graph_pb2.TensorInfo(name=t.name, dtype=t.dtype.base_dtype.as_datatype_enum)
    out.tensor_shape.CopyFrom(t.shape.as_proto())
    return out


def sig(inputs, outputs, method=PREDICT, defaults=None):
    s = meta_graph_pb2.SignatureDef(method_name=method)
    for k, t in inputs.items():
        s.inputs[k].CopyFrom(info(t))
    for k, t in outputs.items():
        s.outputs[k].CopyFrom(info(t))
    for k, value in (defaults or {}).items():
        s.defaults[k].CopyFrom(tf.make_tensor_proto(value, dtype=inputs[k].dtype))
    return s


def write_graph(path, build, tags=("serve",)):
    """build() runs inside a fresh graph and returns {signature key: SignatureDef}."""
    graph = tf.Graph()
    with graph.as_default():
        signatures = build()
    sm = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    mg = sm.meta_graphs.add()
    mg.meta_info_def.tags.extend(tags)
    mg.meta_info_def.tensorflow_version = "2.20.0"
    mg.meta_info_def.stripped_default_attrs = True
    mg.graph_def.CopyFrom(graph.as_graph_def(add_shapes=False))
    for k, s in signatures.items():
        mg.signature_def[k].CopyFrom(s)
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "saved_model.pb"), "wb") as f:
        f.write(sm.SerializeToString(deterministic=True))


def ph(dtype, shape=None, name=None):
    return v1.placeholder(dtype, shape=shape, name=name)


# ------------------------------------------------------------------ echo models
ECHO = {
    "f32": tf.float32,
    "f64": tf.float64,
    "i32": tf.int32,
    "i64": tf.int64,
    "i16": tf.int16,
    "i8": tf.int8,
    "u8": tf.uint8,
    "u16": tf.uint16,
    "u32": tf.uint32,
    "u64": tf.uint64,
    "bool": tf.bool,
    "str": tf.string,
    "half": tf.half,
    "bf16": tf.bfloat16,
    "c64": tf.complex64,
}


def echo(dtype):
    def build():
        x = ph(dtype, name="x")
        return {"serving_default": sig({"x": x}, {"y": tf.identity(x, name="y")})}

    return build


def two():
    a, b = ph(tf.float32, [None], "a"), ph(tf.int32, [None], "b")
    s, t = tf.multiply(a, 2.0, name="s"), tf.add(b, 1, name="t")
    return {
        "serving_default": sig({"a": a, "b": b}, {"s": s, "t": t}),
        "same": sig({"a": a, "b": b}, {"a": s, "b": t}),
        "one_out": sig({"a": a, "b": b}, {"sum": tf.add(a, tf.cast(b, tf.float32), name="sum")}),
    }


def bytes_out():
    s = ph(tf.string, name="s")
    i = ph(tf.int32, name="i")
    same = tf.identity(s, name="same")
    return {
        "serving_default": sig({"s": s}, {"s_bytes": same}),
        "both": sig({"s": s}, {"img_bytes": same, "txt": tf.strings.join([s, s], name="twice")}),
        "named_bytes": sig({"in_bytes": s}, {"out": same}),
        "int_bytes": sig({"i": i}, {"i_bytes": tf.identity(i, name="same_i")}),
        "upper": sig({"s": s}, {"y_BYTES": same}),
    }


def scalar_out():
    x = ph(tf.float32, name="x")
    total = tf.reduce_sum(x, name="total")
    y = tf.identity(x, name="y")
    return {
        "serving_default": sig({"x": x}, {"total": total}),
        "with_rows": sig({"x": x}, {"total": total, "y": y}),
        "uneven": sig({"x": x}, {"y": y, "yy": tf.concat([x, x], 0, name="yy")}),
        "empty": sig({"x": x}, {"none": tf.slice(tf.reshape(x, [-1]), [0], [0], name="none")}),
    }


def multi_sig():
    x = ph(tf.float32, [None], "x")
    k = tf.constant([1.0, 2.0, 3.0], name="k")
    return {
        "serving_default": sig({"x": x}, {"y": tf.add(x, 1.0, name="plus1")}),
        "times2": sig({"x": x}, {"y": tf.multiply(x, 2.0, name="times2")}),
        "no_method": sig({"x": x}, {"y": tf.negative(x, name="neg")}, method=""),
        "odd_method": sig({"x": x}, {"y": tf.abs(x, name="abs")}, method="my/own/method"),
        "no_inputs": sig({}, {"y": tf.identity(k, name="const")}),
        "no_outputs": sig({"x": x}, {}),
        "missing_tensor": _missing(x),
    }


def _missing(x):
    s = sig({"x": x}, {"y": x})
    s.outputs["y"].name = "not_there:0"
    return s


def no_default():
    x = ph(tf.float32, [None], "x")
    return {"other": sig({"x": x}, {"y": tf.add(x, 1.0, name="plus1")})}


def defaults():
    a, b = ph(tf.float32, [None], "a"), ph(tf.float32, [], "b")
    return {
        "serving_default": sig(
            {"a": a, "b": b}, {"y": tf.add(a, b, name="y")}, defaults={"b": np.float32(10.0)}
        ),
        "all": sig(
            {"a": a, "b": b},
            {"y": tf.add(a, b, name="y2")},
            defaults={"a": np.float32([1.0, 2.0]), "b": np.float32(10.0)},
        ),
    }


def add_const(c):
    def build():
        x = ph(tf.float32, [None], "x")
        return {"serving_default": sig({"x": x}, {"y": tf.add(x, float(c), name="y")})}

    return build


def errors():
    n = ph(tf.int32, name="n")
    x = ph(tf.float32, name="x")
    table = tf.constant([1, 2, 3])
    var = v1.get_variable("never", shape=[2], dtype=tf.float32, use_resource=True)
    return {
        "div": sig({"n": n}, {"y": tf.math.floordiv(tf.constant(6), n, name="div")}),
        "gather": sig({"n": n}, {"y": tf.gather(table, n, name="gather")}),
        "numerics": sig({"x": x}, {"y": tf.debugging.check_numerics(x, "bad number", name="numerics")}),
        "reshape": sig({"x": x}, {"y": tf.reshape(x, [2, 2], name="reshape")}),
        "uninit": sig({"x": x}, {"y": tf.add(var.read_value(), x, name="uninit")}),
    }


def slow():
    n = ph(tf.int32, [None], "n")
    last = tf.reduce_max(n)
    with v1.control_dependencies([]):
        end = v1.while_loop(lambda i: i < last, lambda i: i + 1, [tf.constant(0)], parallel_iterations=1)
    return {"serving_default": sig({"n": n}, {"y": tf.add(n, 0 * end, name="y")})}


def examples():
    """Classify and regress signatures over tf.Example; x (float), k (int64), s (bytes), c (float, meant for
    the context)."""
    serialized = ph(tf.string, [None], "serialized")
    spec = {
        "x": tf.io.FixedLenFeature([], tf.float32, default_value=0.0),
        "k": tf.io.FixedLenFeature([], tf.int64, default_value=0),
        "s": tf.io.FixedLenFeature([], tf.string, default_value=b""),
        "c": tf.io.FixedLenFeature([], tf.float32, default_value=0.0),
    }
    f = v1.io.parse_example(serialized, spec, name="parse")
    x, k, s, c = f["x"], f["k"], f["s"], f["c"]
    xs = v1.io.parse_example(serialized, {"xs": tf.io.VarLenFeature(tf.float32)}, name="parse_xs")["xs"]
    half_plus_two = tf.add(tf.multiply(x, 0.5), 2.0, name="half_plus_two")
    two_cols = tf.stack([half_plus_two, tf.add(half_plus_two, 1.0)], axis=1, name="two_cols")
    col = tf.expand_dims(half_plus_two, 1, name="col")
    n = tf.shape(x)[0]
    names = tf.tile(tf.constant([["lo", "hi"]]), tf.stack([n, 1]), name="names")
    three = tf.concat([two_cols, col], axis=1, name="three")
    labels1 = tf.strings.join(["s=", s], name="label")
    ins = {"inputs": serialized}

    def c_(outs, method=CLASSIFY, inputs=None):
        return sig(inputs or ins, outs, method)

    return {
        "serving_default": sig(ins, {"outputs": half_plus_two}, REGRESS),
        "regress": sig(ins, {"outputs": half_plus_two}, REGRESS),
        "regress_col": sig(ins, {"outputs": col}, REGRESS),
        "regress_k": sig(ins, {"outputs": tf.cast(k, tf.float32, name="k_out")}, REGRESS),
        "regress_len_s": sig(
            ins, {"outputs": tf.cast(tf.strings.length(s), tf.float32, name="len_s")}, REGRESS
        ),
        "regress_sum_xs": sig(ins, {"outputs": tf.sparse.reduce_sum(xs, 1)}, REGRESS),
        "regress_ctx": sig(ins, {"outputs": tf.add(x, 100.0 * c, name="ctx")}, REGRESS),
        "regress_no_method": sig(ins, {"outputs": half_plus_two}, ""),
        "regress_two_inputs": sig(
            {"inputs": serialized, "more": serialized}, {"outputs": half_plus_two}, REGRESS
        ),
        "regress_two_outputs": sig(ins, {"outputs": half_plus_two, "more": half_plus_two}, REGRESS),
        "regress_bad_input": sig({"in": serialized}, {"outputs": half_plus_two}, REGRESS),
        "regress_bad_output": sig(ins, {"out": half_plus_two}, REGRESS),
        "regress_int": sig(ins, {"outputs": tf.identity(k, name="k_same")}, REGRESS),
        "regress_wide": sig(ins, {"outputs": two_cols}, REGRESS),
        "regress_short": sig(ins, {"outputs": half_plus_two[:1]}, REGRESS),
        "classify": c_({"classes": names, "scores": two_cols}),
        "classify_label": c_({"classes": tf.expand_dims(labels1, 1, name="label_col"), "scores": col}),
        "classify_scores": c_({"scores": two_cols}),
        "classify_classes": c_({"classes": names}),
        "classify_no_method": c_({"scores": two_cols}, ""),
        "classify_bad_input": c_({"scores": two_cols}, inputs={"in": serialized}),
        "classify_bad_output": c_({"foo": two_cols}),
        "classify_extra_output": c_({"scores": two_cols, "foo": two_cols}),
        "classify_three_outputs": c_({"classes": names, "scores": two_cols, "foo": two_cols}),
        "classify_1d": c_({"scores": half_plus_two}),
        "classify_classes_1d": c_({"classes": labels1}),
        "classify_double": c_({"scores": tf.cast(two_cols, tf.float64, name="double")}),
        "classify_classes_float": c_({"classes": two_cols}),
        "classify_mismatch": c_({"classes": names, "scores": three}),
        "classify_short": c_({"scores": two_cols[:1]}),
        "classify_short_classes": c_({"classes": names[:1]}),
        "predict_examples": sig({"examples": serialized}, {"y": half_plus_two}),
    }


# ------------------------------------------------------------------ models with variables
def write_counter(path):
    graph = tf.Graph()
    with graph.as_default(), v1.Session(graph=graph) as session:
        c = v1.get_variable("counter", initializer=tf.constant(0.0), use_resource=True)
        delta = ph(tf.float32, [], "delta")
        incr = tf.identity(c.assign_add(1.0), name="incr")
        incr_by = tf.identity(c.assign_add(delta), name="incr_by")
        reset = tf.identity(c.assign(0.0), name="reset")
        get = tf.identity(c.read_value(), name="get")
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.builder.SavedModelBuilder(path)
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={
                "get_counter": sig({}, {"output": get}),
                "incr_counter": sig({}, {"output": incr}),
                "incr_counter_by": sig({"delta": delta}, {"output": incr_by}),
                "reset_counter": sig({}, {"output": reset}),
            },
        )
        builder.save()


class MatMul(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(np.arange(12, dtype=np.float32).reshape(4, 3) - 4.0)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def serve(self, x):
        return {"y": tf.matmul(x, self.w)}


class Multi(tf.Module):
    def __init__(self):
        super().__init__()
        self.scale = tf.Variable(3.0)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.float32, name="left"),
            tf.TensorSpec([None], tf.int64, name="right"),
        ]
    )
    def serve(self, left, right):
        return {
            "prod": tf.reduce_sum(left, 1) * self.scale * tf.cast(right, tf.float32),
            "keys": right,
            "tag": tf.strings.as_string(right),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def upper(self, text):
        return {"upper": tf.strings.upper(text)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def parse(self, examples):
        f = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([], tf.float32, default_value=0.0)})
        return {"outputs": f["x"] * self.scale}


class Times(tf.Module):
    def __init__(self, by):
        super().__init__()
        self.by = tf.Variable(float(by))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def serve(self, x):
        return {"y": x * self.by}


# ------------------------------------------------------------------ warm-up records
def warmup_record(alias, value, dtype, signature=""):
    """A PredictionLog holding one PredictRequest, hand encoded (fields: predict_log=6; request=1;
    model_spec=1, inputs=2)."""

    def field(number, data):
        out, n = bytearray([number << 3 | 2]), len(data)
        while n > 127:
            out.append(n & 127 | 128)
            n >>= 7
        return bytes(out) + bytes([n]) + data

    tensor = tf.make_tensor_proto(value, dtype=dtype).SerializeToString(deterministic=True)
    spec = field(1, b"ignored") + (field(3, signature.encode()) if signature else b"")
    request = field(1, spec) + field(2, field(1, alias.encode()) + field(2, tensor))
    return field(6, field(1, request))


def write_warmup(path, records):
    os.makedirs(os.path.join(path, "assets.extra"), exist_ok=True)
    with tf.io.TFRecordWriter(os.path.join(path, "assets.extra", "tf_serving_warmup_requests")) as w:
        for r in records:
            w.write(r)


def main(out):
    shutil.rmtree(out, ignore_errors=True)

    def j(*p):
        return os.path.join(out, *p)

    for key, dtype in ECHO.items():
        write_graph(j("echo_" + key, "1"), echo(dtype))
    for fn in (two, bytes_out, scalar_out, multi_sig, no_default, defaults, errors, slow, examples):
        write_graph(j(fn.__name__, "1"), fn)
    for v in (1, 2, 3):
        write_graph(j("three", str(v)), add_const(v))
    write_graph(j("zeros", "00000123"), add_const(123))
    write_graph(j("zeros", "0007"), add_const(7))
    write_graph(j("stamp", "20170111173521"), add_const(0.5))
    write_graph(j("tagged", "1"), add_const(1), tags=("serve", "extra"))
    write_graph(j("wrong_tags", "1"), add_const(1), tags=("train",))
    write_counter(j("counter", "1"))
    m = MatMul()
    tf.saved_model.save(m, j("matmul", "1"), signatures=m.serve)
    m = Multi()
    tf.saved_model.save(
        m, j("tf2_multi", "1"), signatures={"serving_default": m.serve, "upper": m.upper, "parse": m.parse}
    )
    for v in (1, 2):
        m = Times(v)
        tf.saved_model.save(m, j("tf2_times", str(v)), signatures=m.serve)
    # broken or unusual version folders
    os.makedirs(j("corrupt", "1"))
    with open(j("corrupt", "1", "saved_model.pb"), "wb") as f:
        f.write(b"this is not a protocol buffer\n")
    os.makedirs(j("hollow", "1"))
    with open(j("hollow", "1", ".keep"), "w") as f:
        pass
    shutil.copytree(j("three", "1"), j("half_bad", "1"))
    shutil.copytree(j("corrupt", "1"), j("half_bad", "2"))
    shutil.copytree(j("three", "1"), j("warm", "1"))
    write_warmup(j("warm", "1"), [warmup_record("x", [1.0, 2.0], tf.float32)])
    shutil.copytree(j("three", "1"), j("warm_bad_input", "1"))
    write_warmup(j("warm_bad_input", "1"), [warmup_record("nope", [1.0], tf.float32)])
    shutil.copytree(j("three", "1"), j("warm_junk", "1"))
    os.makedirs(j("warm_junk", "1", "assets.extra"))
    with open(j("warm_junk", "1", "assets.extra", "tf_serving_warmup_requests"), "wb") as f:
        f.write(b"certainly not a record file, but long enough to look like one")
    shutil.copytree(j("three", "1"), j("warm_unparsable", "1"))
    write_warmup(j("warm_unparsable", "1"), [b"\xff\xff\xff\xff"])
    shutil.copytree(j("three", "1"), j("warm_many", "1"))
    write_warmup(j("warm_many", "1"), [warmup_record("x", [1.0], tf.float32)] * 1001)
    shutil.copytree(j("three", "1"), j("warm_session_run", "1"))
    write_warmup(j("warm_session_run", "1"), [b"\x2a\x00"])
    shutil.copytree(j("three", "1"), j("warm_unset", "1"))
    write_warmup(j("warm_unset", "1"), [b""])
    print("wrote", len(os.listdir(out)), "models to", out)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
