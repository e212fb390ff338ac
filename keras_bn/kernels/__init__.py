"""Fast paths of single backends, and the rules for when they apply."""
