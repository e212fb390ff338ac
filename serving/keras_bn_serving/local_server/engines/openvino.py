"""OpenVINO as an engine: a SavedModel's signatures compiled for the processor.

What OpenVINO cannot read, or would answer otherwise than TensorFlow (`openvino_differences.py`), is left to
TensorFlow. So are requests of other shapes than a signature declares, whose errors are TensorFlow's then, and
requests with NaN or infinities, which OpenVINO's activations make numbers of. TensorFlow's session is loaded
when it is first needed.
"""

import logging
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import openvino as ov
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from keras_bn_serving.local_server import memory
from keras_bn_serving.local_server.engines.deadlines import Deadlines
from keras_bn_serving.local_server.engines.engine import Options
from keras_bn_serving.local_server.engines.openvino_differences import DTYPES, reason_against
from keras_bn_serving.local_server.engines.tensorflow import TensorFlow

_DEFAULT = "serving_default"
_OFTEN = 3  # times a shape must occur before a network is compiled for it alone
_MOST_SHAPES = 4  # that have a network of their own: each has a copy of the weights
_MOST_COUNTED = 1000
_DEADLINES = Deadlines()
_log = logging.getLogger(__name__)


class OpenVino:
    """The version in the folder `path`."""

    def __init__(self, path: str, options: Options) -> None:
        self._path = path
        self._options = options
        self._lock = threading.Lock()
        self._tensorflow: TensorFlow | None = None
        self._networks: list[_Network] = []
        meta_graph = _meta_graph(path, options.tags)
        if meta_graph is None:  # TensorFlow's loader says what is wrong with it
            self.signatures = self._fallback().signatures
            return
        self.signatures = dict(meta_graph.signature_def)
        config = {
            "INFERENCE_PRECISION_HINT": "bf16" if options.precision == "bfloat16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if options.session is not None and options.session.intra_op_parallelism_threads > 0:
            config["INFERENCE_NUM_THREADS"] = str(options.session.intra_op_parallelism_threads)
        for key, signature in sorted(self.signatures.items()):
            if not signature.outputs:
                continue
            try:
                why = reason_against(meta_graph.graph_def, signature)
                if not why:
                    self._networks.append(_Network(_read(path, key), signature, config, key == _DEFAULT))
            except Exception as error:  # whatever its reader or its compiler stumbles over
                why = _what_it_says(error)
            if why:
                what = "Signature %s of %s is served by TensorFlow, not OpenVINO: %s"
                _log.warning(what, key, path, why)
                self._fallback()

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> list[np.ndarray]:
        """As Engine.run."""
        for network in self._networks:
            if network.answers(feeds, fetches):
                try:
                    return network.run(feeds, fetches, timeout_ms)
                except RuntimeError as error:  # OpenVINO's only error
                    _log.warning("TensorFlow answers what OpenVINO did not: %s", " ".join(str(error).split()))
                    break
        return self._fallback().run(feeds, fetches, timeout_ms)

    def close(self) -> None:
        """As Engine.close."""
        self._networks.clear()
        if self._tensorflow is not None:
            self._tensorflow.close()

    def _fallback(self) -> TensorFlow:
        with self._lock:
            if self._tensorflow is None:
                with memory.of_models():
                    self._tensorflow = TensorFlow(self._path, self._options)
            return self._tensorflow


class _Network:
    """A signature, compiled for the shapes that occur often, and for any shape when another occurs."""

    def __init__(
        self, model: ov.Model, signature: meta_graph_pb2.SignatureDef, config: dict[str, str], now: bool
    ) -> None:
        self._model = model
        self._config = config
        self._dtypes = {info.name: DTYPES[info.dtype] for info in signature.inputs.values()}
        self._shapes = {info.name: _shape(info) for info in signature.inputs.values()}
        self._inputs = _positions(model.inputs, signature.inputs)
        self._outputs = _positions(model.outputs, signature.outputs)
        # A placeholder may leave open what the signature says.
        model.reshape({self._inputs[name]: ov.PartialShape(shape) for name, shape in self._shapes.items()})
        self._lock = threading.Lock()
        self._seen: Counter[tuple[tuple[int, ...], ...]] = Counter()
        self._any: _Compiled | None = None
        self._static: dict[tuple[tuple[int, ...], ...], _Compiled] = {}
        one = {name: [1, *shape[1:]] for name, shape in self._shapes.items()}
        if now and all(size > 0 for shape in one.values() for size in shape):
            zeros = {name: np.zeros(shape, self._dtypes[name]) for name, shape in one.items()}
            self._compile_for(zeros)
            self.run(zeros, list(self._outputs))

    def answers(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> bool:
        """Whether it has these inputs, of such shapes and of finite numbers, and these outputs."""
        return (
            bool(fetches)
            and feeds.keys() == self._inputs.keys()
            and all(name in self._outputs for name in fetches)
            and all(
                array.dtype == self._dtypes[name]
                and array.size > 0
                and len(array.shape) == len(self._shapes[name])
                and all(
                    want in (-1, size) for want, size in zip(self._shapes[name], array.shape, strict=True)
                )
                and (array.dtype.kind != "f" or bool(np.isfinite(array).all()))
                for name, array in feeds.items()
            )
        )

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> list[np.ndarray]:
        """As Engine.run, of what it `answers`."""
        compiled = self._static.get(_key(feeds)) or self._for_any_shape(feeds)
        inputs = {self._inputs[name]: array for name, array in feeds.items()}
        return compiled.run(inputs, [self._outputs[name] for name in fetches], timeout_ms)

    def _for_any_shape(self, feeds: Mapping[str, np.ndarray]) -> "_Compiled":
        key = _key(feeds)
        with self._lock:
            if self._any is None:
                self._any = _Compiled(self._model, self._config)
            if key in self._seen or len(self._seen) < _MOST_COUNTED:
                self._seen[key] += 1
            if self._seen[key] == _OFTEN and len(self._static) < _MOST_SHAPES:
                shaped = {name: np.empty(array.shape, array.dtype) for name, array in feeds.items()}
                threading.Thread(target=self._try_to_compile_for, args=(shaped,), daemon=True).start()
            return self._any

    def _try_to_compile_for(self, feeds: Mapping[str, np.ndarray]) -> None:
        try:
            self._compile_for(feeds)
        except RuntimeError as error:  # the network for any shape goes on
            what = "OpenVINO compiled no network for requests of the shapes %s alone: %s"
            _log.warning(what, list(_key(feeds)), _what_it_says(error))

    def _compile_for(self, feeds: Mapping[str, np.ndarray]) -> None:
        model = self._model.clone()
        model.reshape({self._inputs[name]: list(array.shape) for name, array in feeds.items()})
        self._static[_key(feeds)] = _Compiled(model, self._config)


class _Compiled:
    """A compiled network, and its requests that are free."""

    def __init__(self, model: ov.Model, config: dict[str, str]) -> None:
        with memory.of_models():  # a request may be what brings this about
            self._compiled = ov.Core().compile_model(model, "CPU", config)
        self._free: list[_Request] = []

    def run(
        self, inputs: Mapping[int, np.ndarray], outputs: Sequence[int], timeout_ms: int
    ) -> list[np.ndarray]:
        """The outputs at these positions, of inputs by position."""
        try:
            request = self._free.pop()
        except IndexError:
            request = _Request(self._compiled)
        arrays = request.run(inputs, outputs, timeout_ms)
        self._free.append(request)
        return arrays


class _Request:
    """One run of a network at a time, with tensors of its own.

    It fills these tensors. Of read-only arrays, as those of gRPC, OpenVINO would make new ones, which takes
    three times as long.
    """

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._request = compiled.create_infer_request()
        # Views of the tensors: making one takes as long as filling it.
        self._inputs: dict[int, np.ndarray] = {}

    def run(
        self, inputs: Mapping[int, np.ndarray], outputs: Sequence[int], timeout_ms: int
    ) -> list[np.ndarray]:
        for index, array in inputs.items():
            if index not in self._inputs or self._inputs[index].shape != array.shape:
                tensor = self._request.get_input_tensor(index)
                tensor.shape = array.shape
                self._inputs[index] = tensor.data
            self._inputs[index][...] = array
        cancel = self._request.cancel
        with _DEADLINES.within(timeout_ms / 1e3, cancel) if timeout_ms > 0 else nullcontext():
            self._request.infer(share_outputs=True)
        return [np.array(self._request.get_output_tensor(index).data) for index in outputs]


def _positions(
    ports: Sequence[ov.Output], tensors: Mapping[str, meta_graph_pb2.TensorInfo]
) -> dict[str, int]:
    """The positions of a signature's tensors, by tensor name, among the inputs or outputs of a model.

    OpenVINO names them by the signature's aliases, but for an output that is an input. The index that a port
    itself has is that of its node.
    """
    positions = {name: position for position, port in enumerate(ports) for name in port.get_names()}
    if missing := tensors.keys() - positions.keys():
        raise ValueError(f"{min(missing)} is an output that is an input")
    return {info.name: positions[alias] for alias, info in tensors.items()}


def _key(feeds: Mapping[str, np.ndarray]) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape for _, array in sorted(feeds.items()))


def _what_it_says(error: Exception) -> str:
    """The part of OpenVINO's message that names the operations, if it does; else its beginning."""
    said = " ".join(str(error).split()).partition(" To facilitate the conversion")[0]
    return said.rpartition("Model wasn't fully converted. ")[2][:300]


def _shape(info: meta_graph_pb2.TensorInfo) -> list[int]:
    return [dim.size for dim in info.tensor_shape.dim]


def _meta_graph(path: str, tags: Sequence[str]) -> meta_graph_pb2.MetaGraphDef | None:
    """The graph with these tags; None if there is none, or no file that can be read."""
    try:
        with open(os.path.join(path, "saved_model.pb"), "rb") as file:
            saved = saved_model_pb2.SavedModel.FromString(file.read())
    except Exception:
        return None
    return next((one for one in saved.meta_graphs if {*one.meta_info_def.tags} == {*tags}), None)


def _read(path: str, key: str) -> ov.Model:
    """The network of one signature. OpenVINO reads the default one, so another is put in its place."""
    if key == _DEFAULT:
        return ov.Core().read_model(path)
    with open(os.path.join(path, "saved_model.pb"), "rb") as file:
        saved = saved_model_pb2.SavedModel.FromString(file.read())
    for meta_graph in saved.meta_graphs:
        wanted = meta_graph.signature_def[key]
        meta_graph.ClearField("signature_def")
        meta_graph.signature_def[_DEFAULT].CopyFrom(wanted)
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "saved_model.pb"), "wb") as file:
            file.write(saved.SerializeToString())
        if os.path.isdir(os.path.join(path, "variables")):
            os.symlink(os.path.abspath(os.path.join(path, "variables")), os.path.join(folder, "variables"))
        return ov.Core().read_model(folder)
