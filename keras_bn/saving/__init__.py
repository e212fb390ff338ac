"""The parts of an export: signatures, the SavedModel, warm-up requests, the proof, the version folder."""
