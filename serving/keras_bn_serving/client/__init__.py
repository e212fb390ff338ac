"""A client for TF Serving's protocol: REST and gRPC, threads and asyncio, NumPy in and out, no TensorFlow."""

from keras_bn_serving.client.async_client import AsyncClient
from keras_bn_serving.client.client import Client
from keras_bn_serving.client.metadata import ModelMetadata, Signature, TensorSpec, VersionStatus

__all__ = ["AsyncClient", "Client", "ModelMetadata", "Signature", "TensorSpec", "VersionStatus"]
