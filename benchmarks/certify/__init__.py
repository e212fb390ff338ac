"""A certificate: every function on models, on every family of models, checked by an oracle of its own."""
