"""A client for TF Serving's protocol: REST and gRPC, threads and asyncio, NumPy in and out, no TensorFlow."""

from serving.client.async_client import AsyncClient
from serving.client.client import Client
from serving.client.metadata import ModelMetadata, Signature, TensorSpec, VersionStatus

__all__ = ["AsyncClient", "Client", "ModelMetadata", "Signature", "TensorSpec", "VersionStatus"]
