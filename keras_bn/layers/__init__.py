"""The layer and its variants."""

from keras_bn.layers.accumulated import AccumulatedBatchNormalization
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.cross_iteration import CrossIterationNormalization
from keras_bn.layers.ghost import GhostBatchNormalization
from keras_bn.layers.renorm import BatchRenormalization
from keras_bn.layers.sequence import SequenceBatchNormalization

__all__ = [
    "AccumulatedBatchNormalization",
    "BatchNormalization",
    "BatchRenormalization",
    "CrossIterationNormalization",
    "GhostBatchNormalization",
    "SequenceBatchNormalization",
]
