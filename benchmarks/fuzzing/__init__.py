"""The fuzzer's parts: a bounded worker, mutations, and a file for each kind of input that the project reads."""
