"""`python -m serving.client`: ask a model server from the command line."""

from serving.client.command import query

query(prog_name="python -m serving.client")
