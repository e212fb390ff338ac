"""Batch normalization for Keras: the layer, model surgery and export."""

from keras_bn.errors import KerasBNError
from keras_bn.inspection.callback import BatchNormalizationMonitor
from keras_bn.inspection.examine import inspect
from keras_bn.layers.accumulated import AccumulatedBatchNormalization
from keras_bn.layers.batch_normalization import BatchNormalization
from keras_bn.layers.channel_affine import ChannelAffine
from keras_bn.layers.cross_iteration import CrossIterationNormalization
from keras_bn.layers.frozen import FrozenBatchNormalization
from keras_bn.layers.ghost import GhostBatchNormalization
from keras_bn.layers.joined import JoinedBatchNormalization
from keras_bn.layers.renorm import BatchRenormalization
from keras_bn.layers.sequence import SequenceBatchNormalization
from keras_bn.saving.check import verify_inference_mode
from keras_bn.saving.drift import drift
from keras_bn.saving.export import export
from keras_bn.surgery.convert import convert
from keras_bn.surgery.fold import fold
from keras_bn.surgery.freeze import freeze, unfreeze
from keras_bn.surgery.population_statistics import PopulationStatistics, merge
from keras_bn.surgery.recalibrate import recalibrate
from keras_bn.surgery.retrofit import retrofit

__version__ = "0.2.0"

__all__ = [
    "AccumulatedBatchNormalization",
    "BatchNormalization",
    "BatchNormalizationMonitor",
    "BatchRenormalization",
    "ChannelAffine",
    "CrossIterationNormalization",
    "FrozenBatchNormalization",
    "GhostBatchNormalization",
    "JoinedBatchNormalization",
    "KerasBNError",
    "PopulationStatistics",
    "SequenceBatchNormalization",
    "convert",
    "drift",
    "export",
    "fold",
    "freeze",
    "inspect",
    "merge",
    "recalibrate",
    "retrofit",
    "unfreeze",
    "verify_inference_mode",
]
