"""Write tests/hostile: small files that no program should trust, and errors.json with the expected error of each.

    python tools/make_hostile_files.py

Run by hand, the results are committed. An entry is [name of the error's class, words in its message].
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "hostile"
FORMAT, UNSUPPORTED = "ModelFormatError", "UnsupportedError"
FAR = 1 << 62
FILES: dict[str, tuple[bytes, list[str]]] = {}


def info(name: str, *dims):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))


def put(name: str, model, error: str, words: str) -> None:
    data = model.SerializeToString() if isinstance(model, ModelProto) else model
    FILES[name] = (data, [error, words])


def graph(nodes, tensors=(), inputs=None, outputs=None):
    return helper.make_graph(
        nodes,
        "g",
        inputs if inputs is not None else [info("x", "b", 4)],
        outputs or [info("y", None, None)],
        list(tensors),
    )


def model(nodes, tensors=(), inputs=None, outputs=None, opset=18, functions=()) -> ModelProto:
    sets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid("own", 1)] if functions else [])
    return helper.make_model(graph(nodes, tensors, inputs, outputs), opset_imports=sets, functions=list(functions))


def node(op, inputs, outputs="y", name="the_node", **attrs):
    return helper.make_node(op, inputs.split(","), outputs.split(","), name, **attrs)


def array(name: str, values) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def claimed(name: str, dims, data: bytes = b"", dtype=TensorProto.FLOAT) -> TensorProto:
    tensor = TensorProto(name=name, data_type=dtype, raw_data=data)
    tensor.dims.extend(dims)
    return tensor


def outside(location: str, **more) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def the_shape_of_graphs() -> None:
    relu = node("Relu", "x")
    put("cycle_of_one", model([node("Add", "x,y")]), FORMAT, "cycle")
    put(
        "cycle_of_two",
        model([node("Add", "x,b", "a", "one"), node("Relu", "a", "b", "two"), node("Relu", "b", "y")]),
        FORMAT,
        "cycle",
    )
    put("missing_input", model([node("Add", "x,nowhere")]), FORMAT, "nothing makes its input 'nowhere'")
    put("missing_output", model([relu], outputs=[info("z", None)]), FORMAT, "nothing makes the output 'z'")
    put("value_made_twice", model([relu, node("Tanh", "x", "y", "again")]), FORMAT, "already exists")
    put("value_that_is_an_input", model([node("Relu", "x", "x"), relu]), FORMAT, "already exists")
    put("two_tensors_of_one_name", model([node("Add", "x,w")], [array("w", np.ones(4, "f4"))] * 2), FORMAT, "two init")
    put("two_inputs_of_one_name", model([relu], inputs=[info("x", "b", 4)] * 2), FORMAT, "declared twice")
    put("two_outputs_of_one_name", model([relu], outputs=[info("y", None)] * 2), FORMAT, "declared twice")
    put("nameless_input", model([relu], inputs=[info("", 1), info("x", 4)]), FORMAT, "no name")
    put("no_graph", ModelProto(ir_version=8), FORMAT, "no graph")
    put("no_opset", helper.make_model(graph([relu]), opset_imports=[]), FORMAT, "opset")
    put("opset_of_the_future", model([relu], opset=1 << 40), UNSUPPORTED, "opset")
    put("three_unknown_operators", model([node("Foo", "x", "a", "first"), node("Bar", "a", "b", "second"),
        node("Baz", "b", "y", "third")]), UNSUPPORTED, "3 things are not supported")  # fmt: skip
    put("attribute_nobody_reads", model([node("Relu", "x", evil=1)]), UNSUPPORTED, "attribute evil")
    put("input_nobody_reads", model([node("Relu", "x,x")]), UNSUPPORTED, "input 1")
    again = helper.make_function("own", "F", ["a"], ["b"], [helper.make_node("F", ["a"], ["b"], domain="own")],
                                 [helper.make_opsetid("own", 1)])  # fmt: skip
    put("function_of_itself", model([node("F", "x", domain="own")], functions=[again]), FORMAT, "")
    put("text", b"ONNX, honestly", FORMAT, "not an ONNX model")
    put("zeros", bytes(4096), FORMAT, "not an ONNX model")


def sizes() -> None:
    put("tensor_of_a_terabyte", model([node("Add", "x,w")], [claimed("w", [1 << 20, 1 << 18])]), FORMAT, "but holds 0")
    put("tensor_beyond_64_bits", model([node("Add", "x,w")], [claimed("w", [1 << 40] * 3, bytes(16))]), FORMAT, "holds")
    put("tensor_below_zero", model([node("Add", "x,w")], [claimed("w", [-4], bytes(16))]), FORMAT, "negative dim")
    put("tensor_of_text", model([node("Add", "x,w")], [claimed("w", [1], b"a", TensorProto.STRING)]), FORMAT, "string")
    put("input_below_zero", model([node("Relu", "x")], inputs=[info("x", -7, 4)]), FORMAT, "dim -7")
    put("input_of_an_exabyte", model([node("Relu", "x")], inputs=[info("x", 1 << 60)]), FORMAT, "dim")
    big = array("n", np.array([1 << 20, 1 << 20]))
    put("expand_to_a_terabyte", model([node("Expand", "x,n")], [big], [info("x", 1)]), FORMAT, "elements")
    put(
        "fill_of_a_terabyte",
        model([node("ConstantOfShape", "n", "a"), node("Add", "x,a", "y", "sum")], [big]),
        FORMAT,
        "",
    )
    put("tile_of_a_terabyte", model([node("Tile", "x,n")], [big]), FORMAT, "elements")
    put("range_without_end", model([node("Range", "o,n,s", "a"), node("Add", "x,a", "y", "sum")],
        [array("o", np.int64(0)), array("n", np.int64(FAR)), array("s", np.int64(1))]), FORMAT,
        "Range from")  # fmt: skip
    put("pad_of_an_exabyte", model([node("Pad", "x,n")], [array("n", np.array([0, FAR, 0, FAR]))]), FORMAT, "pads")
    put("pad_that_cuts_all", model([node("Pad", "x,n")], [array("n", np.array([0, -9, 0, -9]))]), FORMAT, "cut more")
    put("reshape_to_holes", model([node("Reshape", "x,n")], [array("n", np.array([-1, -1]))]), FORMAT, "Reshape")
    put("reshape_below_zero", model([node("Reshape", "x,n")], [array("n", np.array([-2, 4]))]), FORMAT, "Reshape")
    put("concat_of_ranks", model([node("Concat", "x,w", axis=0)], [array("w", np.ones(4, "f4"))]), FORMAT, "ranks")
    put("one_hot_of_an_exabyte", model([node("OneHot", "i,n,v")], [array("n", np.int64(1 << 50)),
        array("v", np.array([0, 1], "f4"))], [helper.make_tensor_value_info("i", TensorProto.INT64, [4])]),
        FORMAT, "elements")  # fmt: skip
    put("resize_to_a_terabyte", model([node("Resize", "x,,n", mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric")], [array("n", np.array([1, 1e12], "f4"))]),
        FORMAT, "")  # fmt: skip
    put("top_of_more_than_all", model([node("TopK", "x,n", "y,i")], [array("n", np.array([9]))]), FORMAT, "k=9")
    wide = array("w", np.ones((1, 4, 3), "f4"))
    image = [info("x", "b", 4, 9)]
    put("stride_of_nothing", model([node("Conv", "x,w", strides=[0])], [wide], image), FORMAT, "strides")
    put("dilation_of_an_exabyte", model([node("Conv", "x,w", dilations=[FAR])], [wide], image), FORMAT, "dilations")
    put("kernel_wider_than_all", model([node("MaxPool", "x", kernel_shape=[1 << 20])], inputs=image), FORMAT, "")
    put("groups_that_do_not_divide", model([node("Conv", "x,w", group=3)], [wide], image), FORMAT, "channels")
    put("infinite_epsilon", model([node("LayerNormalization", "x,w", epsilon=float("inf"))],
        [array("w", np.ones(4, "f4"))]), FORMAT, "epsilon is inf")  # fmt: skip


def recurrence() -> None:
    W, R = (array(n, np.ones(s, "f4")) for n, s in (("W", (1, 16, 4)), ("R", (1, 16, 4))))
    x = [info("x", "t", "b", 4)]
    put("hidden_size_of_another", model([node("LSTM", "x,W,R", hidden_size=5)], [W, R], x), FORMAT, "hidden_size is 5")
    put("weights_of_another_layer", model([node("GRU", "x,W,R", hidden_size=4)], [W, R], x), FORMAT, "")
    put(
        "three_directions",
        model([node("LSTM", "x,W,R", hidden_size=4, direction="sideways")], [W, R], x),
        FORMAT,
        "sideways",
    )
    put("unknown_activation", model([node("LSTM", "x,W,R", hidden_size=4, activations=["Evil"] * 3)], [W, R], x),
        UNSUPPORTED, "Evil")  # fmt: skip


def subgraphs() -> None:
    inner = helper.make_graph([node("Relu", "x", "z")], "leaf", [], [info("z", None)])
    for depth in range(25):  # protobuf itself goes no deeper
        other = helper.make_graph([node("Relu", "x", "z")], f"other_{depth}", [], [info("z", None)])
        step = node("If", "c", "z", f"if_{depth}", then_branch=inner, else_branch=other)
        inner = helper.make_graph([step], f"level_{depth}", [], [info("z", None)])
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    data = helper.make_tensor_value_info("c", TensorProto.BOOL, [9])  # too many to select by
    deep = model([node("If", "c", "y", then_branch=inner, else_branch=other)], inputs=[info("x", "b", 4), data])
    put("ifs_in_ifs", deep, UNSUPPORTED, "bind=")
    put("ifs_a_thousand_deep", nested_bytes(1000), FORMAT, "")
    lone = graph([node("Relu", "x", "z")], outputs=[info("z", None)], inputs=[])
    put("if_without_a_branch", model([node("If", "c", then_branch=lone)], inputs=[info("x", 4), condition]),
        "FastRNNError", "")  # fmt: skip
    cond = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph(
        [node("Identity", "go", "on", "on"), node("Relu", "h", "h2", "step")], "body", [count, cond, info("h", 4)],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), info("h2", 4)],
    )  # fmt: skip
    true = array("yes", np.array(True))
    put("loop_without_end", model([node("Loop", ",yes,x", body=body)], [true], [info("x", 4)]), "FastRNNError", "")
    many = array("n", np.int64(FAR))
    put(
        "loop_of_an_exabyte",
        model([node("Loop", "n,yes,x", body=body)], [true, many], [info("x", 4)]),
        "FastRNNError",
        "",
    )


def nested_bytes(depth: int) -> bytes:
    """Ifs nested deeper than protobuf itself would write them: the bytes are assembled by hand."""

    def field(number: int, data: bytes) -> bytes:
        size, n = b"", len(data)
        while True:
            size += bytes([(n & 127) | (128 if n > 127 else 0)])
            n >>= 7
            if not n:
                return bytes([number << 3 | 2]) + size + data

    inner = b""
    for _ in range(depth):
        attribute = field(1, b"then_branch") + field(6, inner) + b"\xa0\x01\x05"
        inner = field(1, field(1, b"c") + field(2, b"z") + field(4, b"If") + field(5, attribute))
    return b"\x08\x08" + field(7, inner) + field(8, b"\x10\x12")


def other_files() -> None:
    for name, location in (
        ("above", "../secret.bin"),
        ("absolute", "/etc/hostname"),
        ("far_above", "a/../../b"),
        ("empty", ""),
    ):
        put(f"data_{name}", model([node("Add", "x,w")], [outside(location)]), FORMAT, "")
    put("data_before_the_file", model([node("Add", "x,w")], [outside("errors.json", offset=-1)]), FORMAT, "")
    put("data_beyond_the_file", model([node("Add", "x,w")], [outside("errors.json", offset=1 << 40)]), FORMAT, "")


def main() -> None:
    for part in (the_shape_of_graphs, sizes, recurrence, subgraphs, other_files):
        part()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.onnx"):
        old.unlink()
    for name, (data, _) in FILES.items():
        (FOLDER / f"{name}.onnx").write_bytes(data)
    errors = {f"{name}.onnx": error for name, (_, error) in sorted(FILES.items())}
    (FOLDER / "errors.json").write_text(json.dumps(errors, indent=1) + "\n")
    print(len(FILES), "files,", sum(len(d) for d, _ in FILES.values()), "bytes")


if __name__ == "__main__":
    main()
