"""onnxruntime's module of sessions and values."""

from fastrnn.onnxruntime.binding import IOBinding
from fastrnn.onnxruntime.devices import OrtDevice, OrtDeviceVendorId
from fastrnn.onnxruntime.session import InferenceSession
from fastrnn.onnxruntime.values import OrtValue

Session = InferenceSession

__all__ = ["IOBinding", "InferenceSession", "OrtDevice", "OrtDeviceVendorId", "OrtValue", "Session"]
