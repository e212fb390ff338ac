"""Every private name of Keras and TensorFlow that the package uses exists and means what we take it for."""

import os

import keras
import numpy as np
import pytest

from keras_bn import _keras


def model():
    inputs = keras.Input((4,), name="x")
    return keras.Model({"x": inputs}, [keras.layers.Dense(2, name="d")(inputs)])


def test_functional_is_the_class_of_models_of_inputs_and_outputs():
    assert type(model()) is _keras.Functional
    assert not isinstance(keras.Sequential(), _keras.Functional)


def test_flatten_layers_lists_a_layer_and_those_inside_it():
    nested = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1), model()])
    kinds = [type(layer).__name__ for layer in _keras.flatten_layers(nested)]
    assert kinds[0] == "Sequential"
    assert kinds.count("Dense") == 2
    assert _keras.flatten_layers(nested, include_self=False) == _keras.flatten_layers(nested)[1:]


def test_graph_of_a_sequential_is_none_until_it_is_built():
    sequential = keras.Sequential([keras.layers.Dense(1)])
    assert _keras.graph_of(sequential) is None
    sequential.build((None, 4))
    assert isinstance(_keras.graph_of(sequential), _keras.Functional)


def test_nodes_come_after_those_they_depend_on():
    assert [node.operation.name for node in _keras.nodes(model())] == ["x", "d"]


def test_structures_are_those_the_model_was_made_with():
    inputs, outputs = _keras.structures(model())
    assert list(inputs) == ["x"]
    assert isinstance(outputs, list)


def test_compile_arguments_are_the_objects_themselves():
    compiled = model()
    optimizer = keras.optimizers.SGD(0.5)
    compiled.compile(optimizer, "mse")
    assert _keras.compile_arguments(compiled)["optimizer"] is optimizer


def test_direct_layers_are_in_the_order_of_tracking():
    wrapper = keras.layers.TimeDistributed(keras.layers.Dense(1, name="inner"))
    assert [layer.name for layer in _keras.direct_layers(wrapper)] == ["inner"]
    assert [layer.name for layer in _keras.direct_layers(model())] == ["x", "d"]
    sequential = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="first")])
    assert [layer.name for layer in _keras.direct_layers(sequential)][-1:] == ["first"]


def test_storage_is_what_holds_the_value():
    variable = keras.Variable([1.0, 2.0])
    assert isinstance(_keras.storage_of(variable), _keras.storage_types())
    variable.assign([3.0, 4.0])
    assert keras.ops.convert_to_numpy(_keras.storage_of(variable)).tolist() == [3.0, 4.0]


def test_the_uncast_value_is_the_value():
    variable = keras.Variable([1.0, 2.0], autocast=False)
    array = keras.ops.convert_to_numpy
    assert array(_keras.uncast_value(variable)).tolist() == [1.0, 2.0]
    with _keras.variables_read_as("float16"):
        assert keras.backend.standardize_dtype(_keras.uncast_value(variable).dtype) == "float32"
    with keras.StatelessScope(state_mapping=[(variable, keras.ops.convert_to_tensor([3.0, 4.0]))]):
        assert array(_keras.uncast_value(variable)).tolist() == [3.0, 4.0]


def test_a_layer_knows_its_remat_scope():
    assert not _keras.is_rematerialized(keras.layers.Dense(1))
    with keras.RematScope("full"):
        assert _keras.is_rematerialized(keras.layers.Dense(1))


def test_a_stateless_scope_is_known_inside():
    assert not _keras.in_stateless_scope()
    with keras.StatelessScope():
        assert _keras.in_stateless_scope()


def test_losses_of_calls_are_told_from_those_of_regularizers():
    layer = keras.layers.Dense(1, kernel_regularizer="l2")
    layer.build((None, 2))
    assert not _keras.has_losses_of_a_call(layer)
    layer.add_loss(keras.ops.ones(()))
    assert _keras.has_losses_of_a_call(layer)


def test_nodes_and_their_records():
    built = model()
    dense = built.get_layer("d")
    inbound = vars(dense)[_keras.NODE_LISTS[0]]
    assert _keras.producing_node(dense.output) is inbound[0]
    assert _keras.producing_node(keras.KerasTensor((1,))) is None
    assert set(_keras.LOSSES_OF_A_CALL) <= set(vars(dense))
    fresh = _keras.graph_tables(built)
    assert all(vars(built)[name] == value for name, value in fresh.items())


def test_calls_and_losses_can_be_forgotten():
    built = model()
    dense = built.get_layer("d")
    count = len(vars(dense)[_keras.NODE_LISTS[0]])
    with _keras.calls_forgotten([dense]):
        dense(keras.KerasTensor((None, 4)))
        assert len(vars(dense)[_keras.NODE_LISTS[0]]) == count + 1
    assert len(vars(dense)[_keras.NODE_LISTS[0]]) == count
    assert _keras.converts_inputs(dense) and not _keras.converts_inputs(built)
    assert vars(_keras.without_calls(dense))[_keras.NODE_LISTS[0]] == []


def test_a_tracker_stores_identities():
    dense = model().get_layer("d")
    tracker = next(value for value in vars(dense).values() if isinstance(value, _keras.Tracker))
    assert _keras.identities_stored(tracker) == tracker.stored_ids
    assert id(dense.kernel) in tracker.stored_ids["trainable_variables"]


def test_an_optimizer_is_keyed_by_variables():
    dense = model().get_layer("d")
    optimizer = keras.optimizers.Adam()
    optimizer.build(dense.trainable_variables)
    others = [keras.Variable(keras.ops.zeros(v.shape)) for v in dense.trainable_variables]
    tables = _keras.rekeyed(optimizer, list(zip(dense.trainable_variables, others, strict=True)))
    assert any(sorted(table.values()) == [0, 1] for table in tables.values())


def test_variables_are_read_in_the_dtype_asked_for():
    layer = keras.layers.Dense(2, dtype="mixed_bfloat16")
    layer.build((None, 3))
    with _keras.variables_read_as("bfloat16"):
        half = layer.kernel.dtype
        with _keras.variables_read_as("float32"):
            assert (half, layer.kernel.dtype) == ("bfloat16", "float32")


def test_arguments_of_calls_are_those_that_a_model_passes():
    inputs = keras.Input((4,))
    dropout = keras.layers.Dropout(0.5)
    passing = keras.Model(inputs, dropout(inputs, training=True))
    (arguments,) = _keras.arguments_of_calls(dropout)
    assert arguments.pop("training") is True
    assert keras.ops.all(passing(keras.ops.ones((2, 4))) == 1)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="asks TensorFlow")
def test_compiles_with_xla_says_so_inside_a_compiled_function():
    import tensorflow as tf

    from keras_bn._tensorflow import compiles_with_xla

    seen = []

    def function(x):
        seen.append(compiles_with_xla())
        return x

    tf.function(function)(tf.zeros(1))
    tf.function(function, jit_compile=True)(tf.zeros(1))
    assert seen == [False, True]
    assert not compiles_with_xla()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="asks TensorFlow")
def test_optimize_graph_folds_constants():
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2

    from keras_bn._tensorflow import optimize_graph

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [2], "x")
        y = tf.add(x, tf.constant([1.0, 2.0]) * tf.constant([3.0, 4.0]), "y")
        meta_graph = tf.compat.v1.train.export_meta_graph()
        info = tf.compat.v1.saved_model.build_tensor_info
        meta_graph.signature_def["s"].inputs["x"].CopyFrom(info(x))
        meta_graph.signature_def["s"].outputs["y"].CopyFrom(info(y))
    assert "Mul" in {node.op for node in graph.as_graph_def().node}
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1
    optimized = optimize_graph(meta_graph, config)
    assert "Mul" not in {node.op for node in optimized.node}


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="asks TensorFlow")
@pytest.mark.parametrize("fixed_filter", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_operations_of_onednn_answer_as_those_they_stand_for(dtype, fixed_filter):
    import tensorflow as tf

    from keras_bn._tensorflow import use_onednn

    random = np.random.default_rng(0)
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(dtype, [2, 6, 6, 3], "x")
        kernel = tf.constant(random.normal(size=(3, 3, 3, 2)), dtype)
        tf.identity(tf.nn.conv2d(x, kernel, [1, 1, 1, 1], "SAME"), "full")
        tf.identity(tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME"), "depthwise_only")
    value = random.normal(size=(2, 6, 6, 3))
    answers = []
    for change in (False, True):
        definition = graph.as_graph_def()
        for node in definition.node if change else ():
            use_onednn(node, fixed_filter=fixed_filter)
        assert any(node.op == "_MklNativeConv2D" for node in definition.node) == change
        with tf.compat.v1.Session(graph=tf.Graph()) as session:
            fetches = tf.import_graph_def(definition, return_elements=["full:0", "depthwise_only:0"])
            answers.append(session.run(fetches, {"import/x:0": value}))
    for plain, packed in zip(*answers, strict=True):
        np.testing.assert_allclose(packed.astype("float32"), plain.astype("float32"), rtol=1e-2, atol=1e-4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="asks TensorFlow")
@pytest.mark.parametrize("before", [None, "MatrixInverse"])
def test_operations_are_kept_from_the_conversion_to_16_bits(monkeypatch, before):
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2

    from keras_bn._tensorflow import never_converted, optimize_graph

    variable = "TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_DENYLIST_ADD"
    if before is None:
        monkeypatch.delenv(variable, raising=False)
    else:
        monkeypatch.setenv(variable, before)
    with tf.Graph().as_default() as graph, tf.device("/job:localhost/replica:0/task:0/device:CPU:0"):
        x = tf.compat.v1.placeholder("float32", [4, 4], "x")
        tf.identity(tf.matmul(tf.matmul(x, tf.ones([4, 4])), tf.ones([4, 4])), "y")
    meta_graph = meta_graph_pb2.MetaGraphDef(graph_def=graph.as_graph_def())
    meta_graph.signature_def["s"].outputs["y"].name = "y:0"
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1
    config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 = (
        rewriter_config_pb2.RewriterConfig.ON
    )

    def converted():
        nodes = optimize_graph(meta_graph, config).node
        return [node for node in nodes if node.op == "MatMul" and node.attr["T"].type == tf.bfloat16]

    with never_converted(["MatMul"]):
        assert not converted()
    assert os.environ.get(variable) == before
    assert converted()


def test_weights_of_keras_layer_are_found_in_the_place_of_another_class(tmp_path):
    kinds = (keras.layers.BatchNormalization, type("BatchOther", (keras.layers.BatchNormalization,), {}))
    theirs, ours = (keras.Sequential([keras.Input((2,)), kind(), kind()]) for kind in kinds)
    theirs.layers[1].set_weights([np.full(2, float(i)) for i in range(4)])
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    found = {}
    kinds[1].load_own_variables = lambda self, store: found.update(
        {self.name: _keras.stored_as_batch_normalization(store)}
    )
    ours.load_weights(tmp_path / "theirs.weights.h5")
    second = found[ours.layers[1].name]
    assert [float(second[str(i)][0]) for i in range(4)] == [0, 1, 2, 3]


def test_a_mask_goes_with_a_tensor():
    tensor, mask = keras.ops.ones((2, 3)), keras.ops.ones((2,), "bool")
    assert _keras.get_mask(tensor) is None
    _keras.set_mask(tensor, mask)
    assert _keras.get_mask(tensor) is mask


def test_an_optional_input_says_so():
    a, b = keras.Input((2,), optional=True), keras.Input((2,))
    assert (_keras.is_optional(a), _keras.is_optional(b)) == (True, False)


def test_a_compiled_function_has_its_options_copied():
    tf = pytest.importorskip("tensorflow")
    from keras_bn._tensorflow import compiled_alike, is_compiled_function

    function = tf.function(lambda x: x + 1, input_signature=[tf.TensorSpec([None])], jit_compile=False)
    other = compiled_alike(function, lambda x: x * 2)
    assert is_compiled_function(other) and not is_compiled_function(
        test_a_compiled_function_has_its_options_copied
    )
    assert other.input_signature == function.input_signature
    np.testing.assert_array_equal(other([3.0]), [6.0])


def test_a_jitted_function_has_its_options_copied():
    jax = pytest.importorskip("jax")
    from keras_bn._compiled_functions import compiled_alike, is_compiled_function, python_function

    def times(x, count):
        return sum([x] * count)  # needs `count` as a number

    function = jax.jit(times, static_argnums=1)
    assert is_compiled_function(function) and not is_compiled_function(times)
    assert python_function(function) is times
    np.testing.assert_array_equal(compiled_alike(function, lambda x, count: times(x, count + 1))(2.0, 2), 6.0)


def test_a_function_of_torch_tells_what_it_was_compiled_of():
    torch = pytest.importorskip("torch")
    from keras_bn._compiled_functions import is_compiled_function, python_function

    def double(x):
        return x * 2

    function = torch.compile(double, backend="eager")
    assert is_compiled_function(function) and not is_compiled_function(double)
    assert python_function(function) is double
