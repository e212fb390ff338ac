"""`python -m keras_bn_serving.client`: ask a model server from the command line."""

from keras_bn_serving.client.command import query

query(prog_name="python -m keras_bn_serving.client")
