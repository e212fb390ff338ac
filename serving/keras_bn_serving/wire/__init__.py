"""What the client and the local server share: TF Serving's protocol."""
