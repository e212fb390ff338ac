"""The families of keras.applications and KerasHub that have batch normalization, small, nothing downloaded.

The backbones of KerasHub, which hold most of it in layers of their own, are made of small configurations. The
networks of keras.applications have no smaller ones than their smallest member.
"""

from functools import partial

import keras
import numpy as np


def resnet(**options):
    from keras_hub.models import ResNetBackbone

    arguments = {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 64, 64, 64],
        "stackwise_num_blocks": [1, 1, 1, 1],
        "stackwise_num_strides": [1, 2, 2, 2],
        "block_type": "basic_block",
        "image_shape": (64, 64, 3),
    }
    return ResNetBackbone(**arguments | options)


def mobilenet():
    from keras_hub.models import MobileNetBackbone

    return MobileNetBackbone(
        stackwise_expansion=[[16, 24], [24, 32]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[8, 8], [12, 12]],
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_padding=[[1, 1], [2, 2]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
        output_num_filters=32,
        input_activation="hard_swish",
        output_activation="hard_swish",
        input_num_filters=8,
        image_shape=(32, 32, 3),
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        squeeze_and_excite=0.5,
        last_layer_filter=32,
    )


def mobilenet_v5():
    from keras_hub.models import MobileNetV5Backbone

    return MobileNetV5Backbone(
        stackwise_block_types=[["er"], ["uir", "uir"]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[8], [12, 12]],
        stackwise_strides=[[2], [2, 1]],
        stackwise_act_layers=[["relu"], ["relu", "relu"]],
        stackwise_exp_ratios=[[4.0], [2.0, 2.0]],
        stackwise_se_ratios=[[0.0], [0.0, 0.0]],
        stackwise_dw_kernel_sizes=[[0], [5, 5]],
        stackwise_dw_start_kernel_sizes=[[0], [0, 0]],
        stackwise_dw_end_kernel_sizes=[[0], [0, 0]],
        stackwise_exp_kernel_sizes=[[3], [0, 0]],
        stackwise_pw_kernel_sizes=[[1], [0, 0]],
        stackwise_num_heads=[[0], [0, 0]],
        stackwise_key_dims=[[0], [0, 0]],
        stackwise_value_dims=[[0], [0, 0]],
        stackwise_kv_strides=[[0], [0, 0]],
        stackwise_use_cpe=[[False], [False, False]],
        use_msfa=False,
        norm_layer="batch_norm",
        image_shape=(32, 32, 3),
    )


def _efficientnet(**options):
    from keras_hub.models import EfficientNetBackbone

    arguments = {
        "stackwise_kernel_sizes": [3, 3, 3],
        "stackwise_input_filters": [8, 8, 12],
        "stackwise_output_filters": [8, 12, 16],
        "stackwise_expansion_ratios": [1, 4, 4],
        "stackwise_squeeze_and_excite_ratios": [0.0, 0.0, 0.25],
        "stackwise_strides": [1, 2, 2],
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "image_shape": (32, 32, 3),
    }
    return EfficientNetBackbone(**arguments | options)


def efficientnet_edge():
    return _efficientnet(stackwise_num_repeats=[1, 2, 1], stackwise_block_types=["fused", "cba", "unfused"])


def efficientnet_v2(**options):
    arguments = {
        "stackwise_num_repeats": [1, 2, 2],
        "stackwise_block_types": ["fused", "fused", "unfused"],
        "min_depth": 8,
        "include_initial_padding": False,
        "use_depth_divisor_as_min_depth": False,
        "cap_round_filter_decrease": False,
        "stem_conv_padding": "same",
        "batch_norm_momentum": 0.9,
    }
    return _efficientnet(**arguments | options)


def hgnet_v2(**options):
    from keras_hub.models import HGNetV2Backbone

    arguments = {
        "depths": [1, 1],
        "embedding_size": 8,
        "hidden_sizes": [16, 16],
        "stem_channels": [3, 8, 8],
        "hidden_act": "relu",
        "use_learnable_affine_block": False,
        "stackwise_stage_filters": [(8, 8, 16, 1, 2, 3), (16, 8, 16, 1, 2, 3)],
        "apply_downsample": [False, True],
        "use_lightweight_conv_block": [False, True],
        "image_shape": (32, 32, 3),
    }
    return HGNetV2Backbone(**arguments | options)


def retinanet():
    from keras_hub.models import RetinaNetBackbone

    return RetinaNetBackbone(
        image_encoder=resnet(image_shape=(128, 128, 3)),
        min_level=3,
        max_level=5,
        use_p5=False,
        use_fpn_batch_norm=True,
        image_shape=(128, 128, 3),
    )


def deeplab_v3():
    from keras_hub.models import DeepLabV3Backbone

    return DeepLabV3Backbone(
        image_encoder=resnet(image_shape=(64, 64, 3)),
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P4",
        dilation_rates=[6, 12],
        upsampling_size=4,
        projection_filters=8,
        image_shape=(64, 64, 3),
    )


def segformer():
    from keras_hub.models import MiTBackbone, SegFormerBackbone

    encoder = MiTBackbone(
        layerwise_depths=[1, 1],
        image_shape=(32, 32, 3),
        hidden_dims=[4, 8],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[8, 4],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
    )
    return SegFormerBackbone(image_encoder=encoder, projection_filters=8)


def d_fine():
    from keras_hub.models import DFineBackbone

    encoder = hgnet_v2(
        stem_channels=[3, 8, 8],
        stackwise_stage_filters=[[8, 8, 16, 1, 1, 3], [16, 8, 32, 1, 1, 3]],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, False],
        depths=[1, 1],
        hidden_sizes=[16, 32],
        embedding_size=8,
        use_learnable_affine_block=True,
        image_shape=(None, None, 3),
        out_features=["stage1", "stage2"],
        data_format="channels_last",
    )
    return DFineBackbone(
        backbone=encoder,
        decoder_in_channels=[16, 16],
        encoder_hidden_dim=16,
        num_denoising=0,
        num_labels=4,
        hidden_dim=16,
        learn_initial_query=False,
        num_queries=10,
        anchor_image_size=(64, 64),
        feat_strides=[4, 8],
        num_feature_levels=2,
        encoder_in_channels=[16, 32],
        encode_proj_layers=[1],
        num_attention_heads=2,
        encoder_ffn_dim=16,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=8,
        num_lqe_layers=2,
        out_features=["stage1", "stage2"],
        image_shape=(None, None, 3),
        data_format="channels_last",
        seed=0,
    )


def densenet():
    from keras_hub.models import DenseNetBackbone

    return DenseNetBackbone(stackwise_num_repeats=[1, 2], growth_rate=4, image_shape=(32, 32, 3))


def cspnet(**options):
    from keras_hub.models import CSPNetBackbone

    arguments = {
        "stem_filters": 8,
        "stem_kernel_size": 3,
        "stem_strides": 1,
        "stackwise_depth": [1, 1],
        "stackwise_strides": [1, 2],
        "stackwise_num_filters": [8, 8],
        "block_type": "dark_block",
        "stage_type": "dark",
        "image_shape": (32, 32, 3),
    }
    return CSPNetBackbone(**arguments | options)


def xception():
    from keras_hub.models import XceptionBackbone

    return XceptionBackbone(
        stackwise_conv_filters=[[8, 8], [12, 12]], stackwise_pooling=[True, False], image_shape=(48, 48, 3)
    )


def basnet():
    from keras_hub.models import BASNetBackbone, ResNetBackbone

    encoder = ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
    )
    return BASNetBackbone(image_encoder=encoder, num_classes=1, image_shape=(64, 64, 3))


def _application(name, size=32, **options):
    make = getattr(keras.applications, name)
    return make(weights=None, input_shape=(size, size, 3), include_top=False, pooling="avg", **options)


_SMALL_RESNET = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [7],
    "stackwise_num_filters": [64, 64],
    "stackwise_num_blocks": [1, 2],
    "stackwise_num_strides": [1, 2],
    "image_shape": (32, 32, 3),
}

KERAS_HUB = {
    "ResNet": partial(resnet, **_SMALL_RESNET),
    "ResNet, bottleneck": partial(resnet, block_type="bottleneck_block", **_SMALL_RESNET),
    "ResNetV2": partial(resnet, use_pre_activation=True, block_type="bottleneck_block", **_SMALL_RESNET),
    "ResNet-vd": partial(
        resnet,
        block_type="bottleneck_block_vd",
        **_SMALL_RESNET | {"input_conv_filters": [16, 16, 64], "input_conv_kernel_sizes": [3, 3, 3]},
    ),
    "DenseNet": densenet,
    "CSPNet, DarkNet": cspnet,
    "CSPNet, cross stage": partial(
        cspnet,
        block_type="bottleneck_block",
        stage_type="csp",
        bottle_ratio=0.5,
        block_ratio=1.0,
        expand_ratio=2.0,
    ),
    "CSPNet, cross stage 3": partial(
        cspnet, block_type="edge_block", stage_type="cs3", bottle_ratio=1.0, block_ratio=0.5, expand_ratio=1.0
    ),
    "Xception": xception,
    "EfficientNet EdgeTPU": efficientnet_edge,
    "EfficientNetV2": efficientnet_v2,
    "MobileNet": mobilenet,
    "MobileNetV5": mobilenet_v5,
    "HGNetV2": hgnet_v2,
    "HGNetV2, learnable affine": partial(hgnet_v2, use_learnable_affine_block=True),
    "RetinaNet": retinanet,
    "DeepLabV3": deeplab_v3,
    "SegFormer": segformer,
    "D-FINE": d_fine,
    "BASNet": basnet,
}

# The EfficientNets see images of 64x64. Of 32x32, their last 20 BN layers get one value per example, and
# normalizing by the statistics of so few values, layer after layer, enlarges the rounding of any arithmetic:
# moving the weights in their last bit changed the outputs of EfficientNetV2B0 by 0.1, and by 1e-5 at 64x64.
APPLICATIONS = {
    "MobileNet": partial(_application, "MobileNet", alpha=0.25),
    "MobileNetV2": partial(_application, "MobileNetV2", alpha=0.35),
    "MobileNetV3Small": partial(_application, "MobileNetV3Small", alpha=0.75),
    "ResNet50": partial(_application, "ResNet50"),
    "ResNet50V2": partial(_application, "ResNet50V2"),
    "Xception": partial(_application, "Xception", size=71),
    "InceptionV3": partial(_application, "InceptionV3", size=75),
    "EfficientNetB0": partial(_application, "EfficientNetB0", size=64),
    "DenseNet121": partial(_application, "DenseNet121"),
    "NASNetMobile": partial(_application, "NASNetMobile"),
    "EfficientNetV2B0": partial(_application, "EfficientNetV2B0", size=64),
    "InceptionResNetV2": partial(_application, "InceptionResNetV2", size=75),
}


def scramble(model):
    """Give every BN layer statistics and parameters that no two channels share."""
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in layer.weights:
                low, high = (0.5, 1.5) if weight.name in ("gamma", "moving_variance") else (-0.3, 0.3)
                weight.assign(rng.uniform(low, high, weight.shape))
    return model


def images_for(model, count=2):
    """Images of the size that a model takes."""
    shape = [length or 64 for length in keras.tree.flatten(model.inputs)[0].shape[1:]]
    return np.random.default_rng(1).normal(size=(count, *shape)).astype("float32")


def inputs_for(model, count=2):
    """Inputs as `Model.predict` takes them."""
    return keras.tree.map_structure(
        lambda tensor: (
            np.random.default_rng(1)
            .normal(size=(count, *[n or 64 for n in tensor.shape[1:]]))
            .astype(tensor.dtype)
        ),
        model.input,
    )


def photographs_for(model, count):
    """Inputs for `Model.predict`: images that differ as photographs do, in brightness and in the large.

    Mere noise is nearly the same in all examples once it is pooled, and BN would enlarge the rounding of what
    is left. Models that rescale their inputs get values from 0 to 255.
    """
    rescales = any(isinstance(layer, keras.layers.Rescaling) for layer in model.layers)
    return keras.tree.map_structure(lambda tensor: _photographs(tensor, count, rescales), model.input)


def _photographs(tensor, count, in_bytes):
    rng = np.random.default_rng(1)
    rows, columns, channels = (length or 64 for length in tensor.shape[1:])
    coarse = rng.normal(size=(count, 4, 4, channels))
    large = coarse[:, np.arange(rows) * 4 // rows][:, :, np.arange(columns) * 4 // columns]
    brightness = rng.normal(size=(count, 1, 1, channels))
    images = large + brightness + 0.3 * rng.normal(size=large.shape)
    return (np.clip(128 + 50 * images, 0, 255) if in_bytes else images).astype(tensor.dtype)
