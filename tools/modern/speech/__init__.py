"""Streaming encoders of speech recognisers, with the inputs, outputs, caches and metadata that their exporters write.

files      an encoder as a file of one of PyTorch's exporters
zipformer  Zipformer2 of icefall, as sherpa-onnx runs it
emformer   ConvEmformer of icefall
conformer  Conformer of wenet (its files for one caller and for a batch) and of NeMo (cache-aware)
memory     FSMN-VAD of FunASR, MDTC of wekws: a cache in front of an open chunk

The sizes are small and the weights are random. The inputs and outputs of a file are those of the exporter that it is
named after.
"""
