"""Names of onnxruntime that fastrnn refuses, each with the reason. docs/guide/onnxruntime.md lists them."""

from __future__ import annotations

from typing import Any

from .exceptions import RefusedError, RefusedNameError

_ADAPTERS = "fastrnn has no LoRA adapters; write them into the weights"
_COMPILER = "fastrnn compiles a model when it is loaded; fastrnn-convert writes a .fastrnn file"
_PACKAGES = "fastrnn reads model files, not onnxruntime's model packages"
_DEVICES = "fastrnn runs on the CPU alone"
_SPARSE = "fastrnn has no sparse tensors"

CLASSES = {
    "AdapterFormat": _ADAPTERS,
    "LoraAdapter": _ADAPTERS,
    "ModelCompiler": _COMPILER,
    "OrtArenaCfg": "fastrnn has no arena",
    "OrtCompileApiFlags": _COMPILER,
    "ModelPackage": _PACKAGES,
    "ModelPackageComponentContext": _PACKAGES,
    "ModelPackageContext": _PACKAGES,
    "ModelPackageOptions": _PACKAGES,
    "ModelPackageWriteMode": _PACKAGES,
    "OrtEpAssignedNode": _DEVICES,
    "OrtEpAssignedSubgraph": _DEVICES,
    "OrtEpContextData": _DEVICES,
    "OrtEpContextDataBuffer": _DEVICES,
    "OrtEpDevice": _DEVICES,
    "OrtExecutionProviderDevicePolicy": _DEVICES,
    "OrtExternalInitializerInfo": "the weights of a model are those of its file",
    "OrtHardwareDevice": _DEVICES,
    "OrtHardwareDeviceType": _DEVICES,
    "OrtMemoryInfoDeviceType": _DEVICES,
    "OrtSparseFormat": _SPARSE,
    "OrtSyncStream": _DEVICES,
    "SparseTensor": _SPARSE,
}
FUNCTIONS = {
    "copy_tensors": "use OrtValue.update_inplace",
    "create_and_register_allocator": "fastrnn has no allocators to register",
    "create_and_register_allocator_v2": "fastrnn has no allocators to register",
    "get_ep_devices": _DEVICES,
    "register_execution_provider_library": _DEVICES,
    "set_default_logger_callback": "add a handler to the logger 'fastrnn.onnxruntime' of Python's logging",
    "unregister_execution_provider_library": _DEVICES,
}


class _Refused(type):
    """A class that can be named, for `isinstance`, and nothing else."""

    reason: str

    def __call__(cls, *arguments, **named):
        raise RefusedError(f"{cls.__name__}: {cls.reason}")

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise RefusedNameError(f"{cls.__name__}.{name}: {cls.reason}")


def _refused_class(name: str) -> Any:
    """The class of this name in `CLASSES`: making one, or an attribute of it, raises NotImplemented."""
    return _Refused(
        name, (), {"reason": CLASSES[name], "__doc__": f"Refused: {CLASSES[name]}.", "__module__": __name__}
    )


def _refused_function(name: str) -> Any:
    """The function of this name in `FUNCTIONS`: calling it raises NotImplemented."""

    def refuse(*arguments, **named):
        raise RefusedError(f"{name}: {FUNCTIONS[name]}")

    refuse.__name__ = refuse.__qualname__ = name
    refuse.__doc__ = f"Refused: {FUNCTIONS[name]}."
    return refuse


REFUSED = {name: _refused_class(name) for name in CLASSES} | {name: _refused_function(name) for name in FUNCTIONS}
