"""TF Serving's protocol, shared by the client and the local server."""
