"""NVIDIA TensorRT, without another runtime around it: engines that the server builds from ONNX files.

What is here has been run against NVIDIA's parser and builder (TensorRT-RTX, which needs no GPU for that) and against a
stand-in for the runtime in the host's memory. Nothing of it has run on a GPU yet.

    api          the Python module, looked for when a model asks for it; bindings: the part of it that is used, as types
    options      `[backend_options]` of model.toml; policy: what the server's operator has decided
    model_files  an ONNX file and what belongs to it; structure: what of it is no weight
    profiles     which shapes an engine is built for
    builder      from the file to a plan; messages: what TensorRT says meanwhile
    cache        plans that were built before; key, directory, sealed: what makes them trustworthy
    plans        an engine of a file: from the cache, refitted if need be, or built
    engine       a plan in a device's memory; layout: how the batches of a model lie
    executor     one batch at a time through an engine
    backend      the entry point
"""
