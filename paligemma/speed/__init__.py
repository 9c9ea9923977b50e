"""What makes it fast, and what measures how fast it is.

fast.py        decoding and prompts on the CPU by compiled C++: gemv.cpp (one token), gemm.cpp (a prompt), simd.h
compiled.py    a decoding step as one graph, for GPUs: torch.compile and CUDA graphs
step.py        what the two share: which models they may take over, and what is checked before a step
benchmark.py   the command that measures a processor: limits, prompts, answers, training, beside transformers
gpu.py         the command that measures a GPU
shapes.py      the models that both measure, with random weights, and the work that these do
timing.py      the machine's limits, the ways to run a model, and how each is timed
loading.py     time and memory to load a checkpoint
"""
