"""A server with TF Serving's API on TensorFlow's own runtime, for a machine without the real binary.

It imitates what a client, a monitor and an operator can observe of tensorflow_model_server 2.16: answers, messages,
states and their order, and its traps. Not here: MultiInference and SessionService, batching, TLS, GPUs' settings,
sparse inputs, remote file systems, servables other than SavedModels.

    lifecycle, source          pure: which version to load or unload next; which versions a policy wants
    manager, models            threads around them; configuration, labels, reloads
    libtensorflow, tensors     TensorFlow's C library; TensorProto both ways
    saved_model, inference     one loaded version; Predict, Classify, Regress on it
    service                    the calls, apart from a transport
    grpc_api, rest_api, rest_json, flags, command
"""
