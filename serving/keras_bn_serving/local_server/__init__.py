"""A model server by pip: TF Serving's protocol, flags and files for laptops, CI and notebooks.

`launch` starts one from Python, `python -m keras_bn_serving.local_server` and `keras-bn-model-server` from a
shell.
"""

from keras_bn_serving.local_server.launch import LocalServer, launch

__all__ = ["LocalServer", "launch"]
