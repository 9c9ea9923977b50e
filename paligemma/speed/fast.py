"""Fast on the CPU, beside the plain path: a compiled step for each token, compiled products for the prompt, 8 bits.

    from paligemma.speed.fast import prepare_for_decode
    fast = prepare_for_decode(model)                      # or weights="int8"
    generate(fast, processor, images=[image], text=["caption en"])

When one token is decoded at a time, what is left of the work is reading every weight once. The plain path reads them
at a part of the memory's speed and spends time in Python between layers; gemv.cpp does neither. The prompt goes
through the model itself, but where gemm.cpp multiplies matrices faster than torch (it is measured), it does so.

Results agree with the plain path to float32 rounding. In bfloat16 decoding comes closer to float32 than on the plain
path, because only the weights and the cache are rounded.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from time import perf_counter

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..config_checks import check_choice
from ..modeling_gemma import PaliGemmaForConditionalGeneration, PaliGemmaOutput

SOURCES = [Path(__file__).with_name(name) for name in ("gemv.cpp", "gemm.cpp")]
TYPES = {torch.float32: 0, torch.bfloat16: 1}  # as in gemv.cpp
EIGHT_BIT = 2


# ---------------------------------------------------------------------------------------- compiling the two .cpp files


def find_compiler() -> str | None:
    """The C++ compiler: the one that the environment variable CXX names, else g++ or clang++. None: there is none."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            return name
    return None


@cache
def load_library() -> ctypes.CDLL | None:
    """gemv.cpp and gemm.cpp compiled for this processor, once a process (3 seconds). None where that does not
    work, with a warning that says why."""
    compiler = find_compiler()
    if compiler is None:
        warnings.warn("no C++ compiler found (g++ or clang++): decoding takes the plain path", stacklevel=3)
        return None
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    errors = ""
    with tempfile.TemporaryDirectory() as folder:
        compiled, library = [Path(folder) / f"{source.stem}.o" for source in SOURCES], Path(folder) / "fast.so"
        for threads in (["-fopenmp"], []):  # Apple's compiler knows no OpenMP: one thread then
            # In two steps: linking with -ffast-math would switch off denormal numbers in the whole process.
            flags = ["-O3", native, "-std=c++17", "-fPIC", "-ffast-math", "-Wno-unknown-pragmas", *threads]
            steps = [
                [compiler, *flags, "-c", str(source), "-o", str(target)]
                for source, target in zip(SOURCES, compiled, strict=True)
            ]
            steps.append([compiler, "-shared", *threads, *map(str, compiled), "-o", str(library)])
            results = []
            for step in steps:
                results.append(subprocess.run(step, capture_output=True, text=True, encoding="utf-8", errors="replace"))
                if results[-1].returncode:
                    break
            if results[-1].returncode == 0:
                return _declare(ctypes.CDLL(str(library)))
            errors = results[-1].stderr.strip().splitlines()[:1] or ["no message"]
    warnings.warn(
        f"{compiler} could not compile the package's C++ ({errors[0]}): decoding takes the plain path",
        stacklevel=3,
    )
    return None


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    library.decode_step.argtypes = [ctypes.POINTER(_Model), ctypes.POINTER(_Step), ctypes.c_int32]
    library.decode_step.restype = None
    pointer, whole = ctypes.c_void_p, ctypes.c_int32
    library.linear_of_many.argtypes = [pointer, pointer, pointer, whole, whole, whole, pointer, pointer, whole, whole]
    library.linear_of_many.restype = None
    library.work_of_many.argtypes = [whole, whole, whole]
    library.work_of_many.restype = ctypes.c_int64
    library.gelu_of_many.argtypes = [pointer, pointer, ctypes.c_int64, whole, whole]
    library.gelu_of_many.restype = None
    library.read_matrix.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int32]
    library.read_matrix.restype = ctypes.c_float
    return library


# The structures of gemv.cpp, field by field. Pointers are addresses of tensors, which FastPaliGemma keeps alive.
class _Matrix(ctypes.Structure):
    _fields_ = [("weights", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("type", ctypes.c_int32)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("before_attention", "after_attention", "before_mlp", "after_mlp")),
        ("sliding", ctypes.c_int32),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)),
        ("embedding", ctypes.c_void_p),
        ("head", _Matrix),
        ("final_norm", ctypes.c_void_p),
        ("inv_freq", ctypes.c_void_p),
        *((name, ctypes.c_float) for name in ("embedding_scale", "eps", "attention_scale")),
        *((name, ctypes.c_float) for name in ("attention_cap", "final_cap")),
        *((name, ctypes.c_int32) for name in ("num_layers", "D", "I", "H", "H_kv", "d", "V", "window")),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("tokens", "attention_mask", "token_type_ids")),
        ("stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "logits")),
        *((name, ctypes.c_int32) for name in ("B", "T", "max_length", "threads")),
    ]


# ------------------------------------------------------------------------------------------------------- 8-bit weights


def quantize_rows(weight: torch.Tensor, rows_at_once: int = 4096) -> tuple[torch.Tensor, torch.Tensor]:
    """8-bit whole numbers and one scale a row: weight [rows, K] -> (int8 [rows, K], float32 [rows]).

    Symmetric: the largest magnitude of a row becomes 127, so weight is about numbers * scale[:, None], off by at most
    scale / 2. A row of zeros gets scale 0. Done in pieces: a table of 257,216 rows in float32 would not fit twice.
    """
    numbers = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(weight.shape[0])
    for start in range(0, weight.shape[0], rows_at_once):
        rows = weight[start : start + rows_at_once].detach().float()
        step = rows.abs().amax(dim=1) / 127  # [rows]
        scale[start : start + rows_at_once] = step
        numbers[start : start + rows_at_once] = (rows / step.clamp(min=1e-30)[:, None]).round().to(torch.int8)
    return numbers, scale


# ---------------------------------------------------------------------------------------------------------- the prompt


def tiled_linear(x: torch.Tensor, weight: torch.Tensor, bias=None, work: torch.Tensor | None = None) -> torch.Tensor:
    """F.linear by gemm.cpp: x [..., K], weight [rows, K], bias [rows] or None -> [..., rows].

    All float32 or all bfloat16; sums are float32 in both, and rounded once. `work`: float32 memory that it may write
    into, enlarged in place when it is too small. (Memory that is used again is faster than fresh memory.)
    """
    library, (rows, K), threads = load_library(), weight.shape, torch.get_num_threads()
    x, weight = x.contiguous(), weight.contiguous()
    M = x.numel() // K
    work = torch.empty(0) if work is None else work
    needed = library.work_of_many(M, K, threads)
    if len(work) < needed:
        work.resize_(needed)
    output = torch.empty(*x.shape[:-1], rows, dtype=x.dtype)
    bias = None if bias is None else bias.contiguous()  # named, so that the memory lives until it was read
    pointers = weight.data_ptr(), x.data_ptr(), None if bias is None else bias.data_ptr()
    wide = x.dtype == torch.float32
    library.linear_of_many(*pointers, M, K, rows, output.data_ptr(), work.data_ptr(), threads, wide)
    return output


def tiling_pays(weight: torch.Tensor, tokens: int = 256) -> bool:
    """Measured on one matrix of the model: does gemm.cpp multiply it with `tokens` tokens faster than torch?"""
    x = torch.zeros(tokens, weight.shape[1], dtype=weight.dtype)
    tiled = partial(tiled_linear, work=torch.empty(0))
    times = {F.linear: [], tiled: []}
    for _ in range(4):
        for function, seconds in times.items():
            start = perf_counter()
            function(x, weight)
            seconds.append(perf_counter() - start)
    return min(times[tiled]) < min(times[F.linear])


def fast_gelu(x: torch.Tensor) -> torch.Tensor:
    """F.gelu(x, approximate="tanh") by gemm.cpp, float32 or bfloat16: torch's takes two to three times as long."""
    x = x.contiguous()
    output = torch.empty_like(x)
    wide = x.dtype == torch.float32
    load_library().gelu_of_many(x.data_ptr(), output.data_ptr(), x.numel(), torch.get_num_threads(), wide)
    return output


class FastOperations(TorchFunctionMode):
    """Inside `with FastOperations():` F.linear of 8 or more vectors is `tiled_linear`, and GELU is `fast_gelu`.

    (nn.Linear calls F.linear, so the model need not know.) Everything else, mistakes included, is torch's.
    """

    def __init__(self):
        super().__init__()
        self.work = torch.empty(0)  # for all products of this block

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.linear and len(args) >= 2 and self.suits(*args[:2]):
            return tiled_linear(*args, **kwargs, work=self.work)
        if func is F.gelu and kwargs == {"approximate": "tanh"} and args[0].dtype in TYPES:
            return fast_gelu(*args)
        return func(*args, **kwargs)  # this method itself is out of the way while it runs

    @staticmethod
    def suits(x: torch.Tensor, weight: torch.Tensor) -> bool:
        if x.dtype != weight.dtype or x.dtype not in TYPES or weight.ndim != 2:
            return False
        K = weight.shape[1]
        return x.ndim >= 1 and x.shape[-1] == K and x.numel() >= 8 * K > 0


# ------------------------------------------------------------------------------------------------------ the fast model


def prepare_for_decode(model: PaliGemmaForConditionalGeneration, weights: str | None = None):
    """A model that decodes fast; give it to `generate` in place of `model`, which stays as it is.

    `weights`: None keeps the model's own (float32 or bfloat16), which are read where they are and not copied; "int8"
    makes 8-bit copies for decoding (half the bytes of bfloat16, so up to twice the speed; logits change, see
    docs/performance.md). Prepare again after the weights have changed.

    Returns the model itself, with a warning, where the .cpp files can't be compiled. Raises ValueError for a model that
    is not on the CPU or in another dtype, and for another value of `weights`.
    """
    check_choice("weights", weights or "own", ("own", "int8"))
    if model.device.type != "cpu" or model.dtype not in TYPES:
        raise ValueError(
            f"the model is {model.dtype} on {model.device}; fast decoding needs float32 or bfloat16 on the CPU: "
            "load it with dtype= and device='cpu', or use the model as it is"
        )
    library = load_library()
    return model if library is None else FastPaliGemma(model, library, weights == "int8")


class FastPaliGemma:
    """Called like the model it holds. A single new token takes gemv.cpp, everything else the model."""

    def __init__(self, model: PaliGemmaForConditionalGeneration, library: ctypes.CDLL, eight_bit: bool):
        self.model, self.library, self.eight_bit = model, library, eight_bit
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        self._kept = []  # tensors that the structures point to
        widest = model.language_model.model.layers[0].mlp.gate_proj.weight.detach()
        self.tile_prompt = tiling_pays(widest)
        config, decoder = model.config.text_config, model.language_model.model
        gemma2 = config.model_type == "gemma2"
        self._layers = (_Layer * config.num_hidden_layers)()
        for index, layer in enumerate(decoder.layers):
            attention, mlp = layer.self_attn, layer.mlp
            names = ("q", "k", "v", "o", "gate", "up", "down")
            linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
            linears += (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
            for name, linear in zip(names, linears, strict=True):
                setattr(self._layers[index], name, self._matrix(linear.weight))
            self._layers[index].before_attention = self._norm(layer.input_layernorm)
            if gemma2:
                self._layers[index].after_attention = self._norm(layer.post_attention_layernorm)
                self._layers[index].before_mlp = self._norm(layer.pre_feedforward_layernorm)
                self._layers[index].after_mlp = self._norm(layer.post_feedforward_layernorm)
                self._layers[index].sliding = config.layer_types[index] == "sliding_attention"
            else:
                self._layers[index].before_mlp = self._norm(layer.post_attention_layernorm)
        embedding = decoder.embed_tokens.weight.detach()
        self._model = _Model(
            layers=self._layers,
            embedding=self._pointer(embedding),
            head=self._matrix(embedding),
            final_norm=self._norm(decoder.norm),
            inv_freq=self._pointer(decoder.rotary_emb.inv_freq()),
            embedding_scale=float(torch.tensor(config.hidden_size**0.5, dtype=self.dtype)),
            eps=config.rms_norm_eps,
            attention_scale=decoder.layers[0].self_attn.scale,
            attention_cap=(config.attn_logit_softcapping or 0.0) if gemma2 else 0.0,
            final_cap=(config.final_logit_softcapping or 0.0) if gemma2 else 0.0,
            num_layers=config.num_hidden_layers,
            D=config.hidden_size,
            I=config.intermediate_size,
            H=config.num_attention_heads,
            H_kv=config.num_key_value_heads,
            d=config.head_dim,
            V=embedding.shape[0],
            window=(config.sliding_window or 0) if gemma2 else 0,
        )

    def _pointer(self, tensor: torch.Tensor) -> int:
        tensor = tensor.detach().contiguous()  # itself, unless it is a view
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _norm(self, norm) -> int:
        return self._pointer(1.0 + norm.weight.detach().float())

    def _matrix(self, weight: torch.Tensor) -> _Matrix:
        if not self.eight_bit:
            return _Matrix(self._pointer(weight), None, TYPES[weight.dtype])
        numbers, scale = quantize_rows(weight)
        return _Matrix(self._pointer(numbers), self._pointer(scale), EIGHT_BIT)

    def weight_bytes(self) -> int:
        """Bytes of weights that one step reads (the embedding counts once: as the head)."""
        matrices = [getattr(layer, name) for layer in self._layers for name in "q k v o gate up down".split()]
        sizes = {tensor.data_ptr(): tensor.nbytes for tensor in self._kept}
        return sum(sizes[matrix.weights] for matrix in [*matrices, self._model.head])

    @torch.no_grad()
    def __call__(self, input_ids, pixel_values=None, attention_mask=None, token_type_ids=None, **options):
        """Arguments and result as the model's. Raises as it and its KVCache do."""
        if takes_one_token(input_ids, pixel_values, options) and options["kv_cache"].keys.dtype == self.dtype:
            return self._step(input_ids, attention_mask, token_type_ids, options["kv_cache"])
        with FastOperations() if self.tile_prompt else nullcontext():
            return self.model(input_ids, pixel_values, attention_mask, token_type_ids, **options)

    def _step(self, input_ids, attention_mask, token_type_ids, kv_cache) -> PaliGemmaOutput:
        """One token for each row: input_ids [B, 1] -> logits [B, 1, V] float32."""
        attention_mask, token_type_ids = check_step(input_ids, attention_mask, token_type_ids, kv_cache)
        B, T = attention_mask.shape
        tokens = input_ids.contiguous()
        if int(tokens.min()) < 0 or int(tokens.max()) >= self._model.V:
            raise ValueError(f"token ids must lie from 0 to {self._model.V - 1}, these are {tokens.flatten().tolist()}")
        if attention_mask.stride() != token_type_ids.stride() or attention_mask.stride(1) != 1:
            attention_mask, token_type_ids = attention_mask.contiguous(), token_type_ids.contiguous()
        logits = torch.empty(B, 1, self._model.V)
        step = _Step(
            tokens=tokens.data_ptr(),
            attention_mask=attention_mask.data_ptr(),
            token_type_ids=token_type_ids.data_ptr(),
            stride=attention_mask.stride(0),
            keys=kv_cache.keys.data_ptr(),
            values=kv_cache.values.data_ptr(),
            logits=logits.data_ptr(),
            B=B,
            T=T,
            max_length=kv_cache.max_length,
            threads=torch.get_num_threads(),
        )
        self.library.decode_step(self._model, step, self.dtype == torch.float32)
        kv_cache.advance(1)
        return PaliGemmaOutput(logits=logits, kv_cache=kv_cache)


def check_step(input_ids, attention_mask, token_type_ids, kv_cache) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask and types [B, T] of a step that adds one token to the cache; where None, those that the model would take.

    Raises ValueError when batch and cache differ, when the cache is full, and for masks of another shape.
    """
    B, T = input_ids.shape[0], kv_cache.length + 1
    if B != kv_cache.batch_size:
        raise ValueError(f"the cache was made for {kv_cache.batch_size} rows, this batch has {B}")
    if T > kv_cache.max_length:
        raise ValueError(f"the cache is full ({kv_cache.max_length} tokens): make it with a larger max_length")
    if attention_mask is None:
        attention_mask = torch.ones(B, T, dtype=torch.int64, device=input_ids.device)
    if token_type_ids is None:
        token_type_ids = torch.zeros(B, T, dtype=torch.int64, device=input_ids.device)
    for name, tensor in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
        if tuple(tensor.shape) != (B, T):
            raise ValueError(f"{name} has shape {list(tensor.shape)}, expected [{B}, {T}]")
    return attention_mask, token_type_ids


def takes_one_token(input_ids, pixel_values, options: dict) -> bool:
    """Is this call of a model a plain decoding step: one new token for each row, a cache, and nothing else?"""
    others = pixel_values, options.get("labels"), options.get("image_features")
    return options.get("kv_cache") is not None and input_ids.shape[1] == 1 and all(other is None for other in others)
