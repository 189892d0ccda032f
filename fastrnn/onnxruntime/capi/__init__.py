"""The modules in which onnxruntime keeps its names; each takes them from the modules of fastrnn.onnxruntime.

They import by full names, so that a copy under the name `onnxruntime.capi` has the same classes.
"""

from fastrnn.onnxruntime.capi import _pybind_state, onnxruntime_inference_collection, onnxruntime_pybind11_state

__all__ = ["_pybind_state", "onnxruntime_inference_collection", "onnxruntime_pybind11_state"]
