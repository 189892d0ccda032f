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
        "which fixes a size that the file leaves open",
        "sizes thaw; this one reshapes [0, 3, 4], whose 0 looks like any other size, to [3, 4, 0]",
        "reshape_allowzero_reordered",
    ),
    (
        "it is a sequence",
        "outputs are tensors",
        "split_to_sequence_nokeepdims",
    ),
    (
        "a sequence of tensors",
        "outputs are tensors",
        "split_to_sequence_1 split_to_sequence_2",
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
        "engines differ on the indices",
        "onnx pads what it unpooled, onnxruntime counts in the larger image",
        "maxunpool_export_with_output_shape",
    ),
    (
        "ReduceProd multiplies all elements of it; that fixes the size",
        "products are over sizes that are known",
        "reduce_prod_empty_set",
    ),
    (
        "coordinate_transformation_mode=",
        "onnx's reference and onnxruntime differ if a part of an element is left over",
        "resize_downsample_scales_cubic_align_corners resize_downsample_scales_linear_align_corners",
    ),
]
REFUSED = {f"test_{name}": words for words, _, names in _REFUSED for name in names.split()}

# Known bugs: name -> (what is wrong, whether it can be run without harm).
BUGS: dict[str, tuple[str, bool]] = {}
