"""onnx's node cases that fastrnn does not pass, each by name: with the words of its refusal, or with what differs.

Beside these, every case that mentions a type outside RUN_TYPES is refused, or answered in float32, for that reason.
"""

# onnx's names of the types that fastrnn computes in. float16 computes in float32, and float32 comes out.
RUN_TYPES = {"float", "float16", "int32", "int64", "bool", "undefined"}

# (words of the refusal, why, names without "test_")
_REFUSED = [
    (
        "training_mode",
        "training stays in the frameworks",
        (
            "batchnorm_epsilon_training_mode batchnorm_example_training_mode training_dropout training_dropout_default "
            "training_dropout_default_mask training_dropout_mask training_dropout_zero_ratio "
            "training_dropout_zero_ratio_mask"
        ),
    ),
    (
        "its mask output is used",
        "the mask of a Dropout that drops nothing serves training alone",
        "dropout_default_mask dropout_default_mask_ratio",
    ),
    (
        "its outputs Mean and InvStdDev",
        "they serve training alone",
        (
            "layer_normalization_2d_axis0 layer_normalization_2d_axis1 layer_normalization_2d_axis_negative_1 "
            "layer_normalization_2d_axis_negative_2 layer_normalization_3d_axis0_epsilon "
            "layer_normalization_3d_axis1_epsilon layer_normalization_3d_axis2_epsilon "
            "layer_normalization_3d_axis_negative_1_epsilon layer_normalization_3d_axis_negative_2_epsilon "
            "layer_normalization_3d_axis_negative_3_epsilon layer_normalization_4d_axis0 layer_normalization_4d_axis1 "
            "layer_normalization_4d_axis2 layer_normalization_4d_axis3 layer_normalization_4d_axis_negative_1 "
            "layer_normalization_4d_axis_negative_2 layer_normalization_4d_axis_negative_3 "
            "layer_normalization_4d_axis_negative_4 layer_normalization_default_axis"
        ),
    ),
    (
        "a Range that depends on the inputs",
        "the length of a value can depend on sizes, not on numbers",
        (
            "blackmanwindow_expanded blackmanwindow_symmetric_expanded hammingwindow_expanded "
            "hammingwindow_symmetric_expanded hannwindow_expanded hannwindow_symmetric_expanded"
        ),
    ),
    (
        "can't divide the size",
        "the ratio of two sizes that are both free here; real exports have it as a number",
        (
            "flexattention_causal_mask_expanded_ver26 flexattention_diff_head_sizes_expanded_ver26 "
            "flexattention_expanded_ver26 flexattention_fp16_expanded_ver26 flexattention_gqa_expanded_ver26 "
            "flexattention_prob_mod_expanded_ver26 flexattention_relative_positional_expanded_ver26 "
            "flexattention_scaled_expanded_ver26 flexattention_score_mod_expanded_ver26 "
            "flexattention_soft_cap_expanded_ver26"
        ),
    ),
    ("of type sequence_type", "inputs are tensors", "identity_sequence"),
    ("of type optional_type", "inputs are tensors", "identity_opt"),
    (
        "fmod=1",
        "the remainder with the dividend's sign: no recurrent model uses it",
        (
            "mod_float16_mixed_sign_fmod_0 mod_float32_mixed_sign_fmod_0 mod_float_edge_cases_fmod_0_float16 "
            "mod_float_edge_cases_fmod_0_float32 mod_int64_fmod mod_mixed_sign_float16 mod_mixed_sign_float32"
        ),
    ),
    ("opset 1;", "opsets before 7 are not read", "not_2d not_3d not_4d"),
    (
        "ReduceProd of values that are not sizes",
        "it serves shape arithmetic alone",
        (
            "reduce_prod_default_axes_keepdims_example reduce_prod_default_axes_keepdims_random "
            "reduce_prod_do_not_keepdims_example reduce_prod_do_not_keepdims_random reduce_prod_empty_set "
            "reduce_prod_keepdims_example reduce_prod_keepdims_random reduce_prod_negative_axes_keepdims_example "
            "reduce_prod_negative_axes_keepdims_random"
        ),
    ),
    (
        "which fixes a size that the file leaves open",
        "sizes thaw; this one reshapes [0, 3, 4], whose 0 looks like any other size, to [3, 4, 0]",
        "reshape_allowzero_reordered",
    ),
    (
        "a size or a sequence is returned",
        "no shape arithmetic survives import",
        (
            "shape shape_clip_end shape_clip_start shape_end_1 shape_end_negative_1 shape_example shape_start_1 "
            "shape_start_1_end_2 shape_start_1_end_negative_1 shape_start_negative_1 size size_example "
            "split_to_sequence_nokeepdims"
        ),
    ),
    ("a sequence of parts longer than one", "only torch's unbind is read", "split_to_sequence_1 split_to_sequence_2"),
    ("Swish: alpha=0.5", "Swish is read as x * sigmoid(x) alone", "swiglu_alpha_expanded"),
]
REFUSED = {f"test_{name}": words for words, _, names in _REFUSED for name in names.split()}

# Answered, and not as onnx does: name -> why that is so.
WRONG = {"test_cast_FLOAT_to_BFLOAT16": "bfloat16, like float16, computes in float32 and gives it"}
