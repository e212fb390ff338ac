"""From an address to a transport; only the libraries that it needs are imported."""

from keras_bn_serving.client.endpoint import Endpoint
from keras_bn_serving.client.transport import AsyncTransport, Transport


def connect(endpoint: Endpoint) -> Transport:
    """Return the transport of an endpoint for threads."""
    if endpoint.is_rest:
        from keras_bn_serving.client.http_transport import HttpTransport

        return HttpTransport(endpoint)
    from keras_bn_serving.client.grpc_transport import GrpcTransport

    return GrpcTransport(endpoint)


def connect_async(endpoint: Endpoint) -> AsyncTransport:
    """Return the transport of an endpoint for asyncio."""
    if endpoint.is_rest:
        from keras_bn_serving.client.async_http_transport import AsyncHttpTransport

        return AsyncHttpTransport(endpoint)
    from keras_bn_serving.client.grpc_transport import AsyncGrpcTransport

    return AsyncGrpcTransport(endpoint)
