"""The parts of an export: signatures, the SavedModel, warm-up requests, the checks, the version folder."""
