"""onnx's node cases that fastrnn does not pass, each by name: with the words of its refusal, or the bug that it shows.

Beside these, every case that mentions a type outside RUN_TYPES is refused, or answered in float32, for that reason.
"""

# onnx's names of the types that fastrnn computes in. float16 and bfloat16 compute in float32, and float32 comes out.
RUN_TYPES = {
    *("float", "float16", "bfloat16", "bool", "undefined"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
}

# (words of the refusal, why, names without "test_")
_REFUSED = [
    (
        "training_mode",
        "training stays in the frameworks",
        (
            "batchnorm_epsilon_training_mode batchnorm_example_training_mode training_dropout "
            "training_dropout_default training_dropout_default_mask training_dropout_mask training_dropout_zero_ratio "
            "training_dropout_zero_ratio_mask"
        ),
    ),
    (
        "its mask output is used",
        "the mask of a Dropout that drops nothing serves training alone",
        "dropout_default_mask dropout_default_mask_ratio",
    ),
    (
        "rows that are reversed over a part of their length",
        "ReverseSequence is read where it turns whole rows round, as tf2onnx writes it",
        "reversesequence_batch reversesequence_bfloat16 reversesequence_time",
    ),
    (
        "of type sequence_type",
        "inputs are tensors",
        "identity_sequence",
    ),
    (
        "of type optional_type",
        "inputs are tensors",
        "identity_opt",
    ),
    (
        "opset 1;",
        "opsets before 7 are not read",
        "not_2d not_3d not_4d",
    ),
    (
        "which fixes a size that the file leaves open",
        "sizes thaw; this one reshapes [0, 3, 4], whose 0 looks like any other size, to [3, 4, 0]",
        "reshape_allowzero_reordered",
    ),
    (
        "it is a size or a sequence",
        "no shape arithmetic survives import",
        (
            "shape shape_clip_end shape_clip_start shape_end_1 shape_end_negative_1 shape_example shape_start_1 "
            "shape_start_1_end_2 shape_start_1_end_negative_1 shape_start_negative_1 size size_example "
            "split_to_sequence_nokeepdims"
        ),
    ),
    ("a sequence of tensors", "outputs are tensors", "split_to_sequence_1 split_to_sequence_2"),
    (
        "over a value of rank 5",
        "windows slide over one or two axes",
        (
            "averagepool_3d_default averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_False "
            "averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_True "
            "averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_False "
            "averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True averagepool_3d_dilations_small "
            "convtranspose_3d maxpool_3d_default maxpool_3d_dilations maxpool_3d_dilations_use_ref_impl "
            "maxpool_3d_dilations_use_ref_impl_large"
        ),
    ),
    (
        "its output Indices",
        "they serve unpooling alone",
        "maxpool_with_argmax_2d_precomputed_pads maxpool_with_argmax_2d_precomputed_strides",
    ),
    (
        "mode=",
        "wrap continues an axis from its other end, which no recurrent model does",
        "wrap_pad",
    ),
    (
        "reduction=",
        "ScatterND is read where it overwrites a box",
        (
            "scatternd_add scatternd_max scatternd_max_with_element_indices scatternd_min "
            "scatternd_min_with_element_indices scatternd_multiply"
        ),
    ),
    (
        "indices that are not a box in order",
        "ScatterND is read where it overwrites a box",
        "scatternd",
    ),
    (
        "a Range that depends on the inputs",
        "a shape that the caller feeds",
        "affine_grid_2d_align_corners_expanded affine_grid_2d_expanded affine_grid_3d_expanded",
    ),
    (
        "operator Optional",
        "values are tensors",
        "if_opt",
    ),
    (
        "a sequence of tensors",
        "outputs are tensors",
        "if_seq",
    ),
    (
        "of type sequence_type",
        "inputs are tensors",
        "loop13_seq sequence_insert_at_back sequence_insert_at_front",
    ),
    (
        "of type sequence_type",
        "inputs are tensors",
        (
            "sequence_map_add_1_sequence_1_tensor_expanded sequence_map_add_2_sequences_expanded "
            "sequence_map_extract_shapes_expanded sequence_map_identity_1_sequence_1_tensor_expanded "
            "sequence_map_identity_1_sequence_expanded sequence_map_identity_2_sequences_expanded"
        ),
    ),
    (
        "of type optional_type",
        "inputs are tensors",
        "loop16_seq_none",
    ),
    (
        "trip count is computed from data",
        "the number of steps is an input",
        (
            "range_bfloat16_type_positive_delta_expanded range_float16_type_positive_delta_expanded "
            "range_float_type_positive_delta_expanded"
        ),
    ),
    (
        "ReduceProd multiplies all elements of it; that fixes the size",
        "products are over sizes that are known",
        "reduce_prod_empty_set",
    ),
    (
        "mode='cubic'",
        "axes become longer by repeats and mixtures of two neighbours",
        (
            "resize_downsample_scales_cubic resize_downsample_scales_cubic_A_n0p5_exclude_outside "
            "resize_downsample_scales_cubic_align_corners resize_downsample_scales_cubic_antialias "
            "resize_downsample_sizes_cubic resize_downsample_sizes_cubic_antialias resize_upsample_scales_cubic "
            "resize_upsample_scales_cubic_A_n0p5_exclude_outside resize_upsample_scales_cubic_align_corners "
            "resize_upsample_scales_cubic_asymmetric resize_upsample_sizes_cubic"
        ),
    ),
    (
        "coordinate_transformation_mode=",
        "axes are resized in the ways of PyTorch and Keras",
        (
            "resize_downsample_scales_linear_align_corners resize_downsample_scales_linear_half_pixel_symmetric "
            "resize_tf_crop_and_resize resize_tf_crop_and_resize_axes_2_3 resize_tf_crop_and_resize_axes_3_2 "
            "resize_tf_crop_and_resize_extrapolation_value resize_upsample_scales_linear_half_pixel_symmetric"
        ),
    ),
    (
        "antialias=1",
        "it serves images",
        "resize_downsample_scales_linear_antialias resize_downsample_sizes_linear_antialias",
    ),
    (
        "keep_aspect_ratio_policy=",
        "it serves images",
        (
            "resize_downsample_sizes_nearest_not_larger resize_downsample_sizes_nearest_not_smaller "
            "resize_upsample_sizes_nearest_not_larger resize_upsample_sizes_nearest_not_smaller"
        ),
    ),
    (
        "into a value of rank 2",
        "ScatterElements is read where it turns a permutation round",
        "scatter_elements_with_axis scatter_elements_with_negative_indices scatter_elements_without_axis",
    ),
    (
        "reduction=",
        "ScatterElements is read where it overwrites",
        (
            "scatter_elements_with_duplicate_indices scatter_elements_with_reduction_max "
            "scatter_elements_with_reduction_min scatter_elements_with_reduction_mul"
        ),
    ),
    (
        "with attribute mode=",
        "SpaceToDepth has no mode in the opsets that are read",
        "spacetodepth_crd_mode_example spacetodepth_dcr_mode_example",
    ),
]
REFUSED = {f"test_{name}": words for words, _, names in _REFUSED for name in names.split()}

# Known bugs: name -> (what is wrong, whether it can be run without harm).
BUGS: dict[str, tuple[str, bool]] = {}
