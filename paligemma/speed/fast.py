"""Fast on the CPU, beside the plain path: a compiled step for each token, compiled products for the prompt, 8 bits.

    from paligemma.speed.fast import prepare_for_decode
    fast = prepare_for_decode(model)                      # or weights="int8"
    generate(fast, processor, images=[image], text=["caption en"])

When one token is decoded at a time, what is left of the work is reading every weight once. The plain path reads them
at a part of the memory's speed and spends time in Python between layers; gemv.cpp does neither. The prompt goes
through the model itself, but where gemm.cpp multiplies matrices faster than torch (it is measured, for each size of
matrix), it does so. `repr(fast)` tells what was chosen.

Results agree with the plain path to float32 rounding. In bfloat16 decoding comes closer to float32 than on the plain
path, because only the weights and the cache are rounded.
"""

import ctypes
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from time import perf_counter

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..config_checks import check_choice
from ..modeling_gemma import PaliGemmaForConditionalGeneration, PaliGemmaOutput
from .step import ModelWithFastStep, takes_fast_steps

SOURCES = [Path(__file__).with_name(name) for name in ("gemv.cpp", "gemm.cpp")]
TYPES = {torch.float32: 0, torch.bfloat16: 1}  # as in gemv.cpp
EIGHT_BIT = 2
BAD_TOKEN, BAD_TYPE = 1, 2  # what decode_step of gemv.cpp returns for input that it refuses


# ---------------------------------------------------------------------------------------- compiling the two .cpp files


def find_compiler() -> str | None:
    """The C++ compiler: the one that the environment variable CXX names, else g++ or clang++. None: there is none."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            return name
    return None


def load_library() -> ctypes.CDLL | None:
    """gemv.cpp and gemm.cpp compiled for this processor, once a process (3 seconds). None where that does not
    work, with a warning that says why."""
    library, problem = try_to_load()
    if library is None:
        warnings.warn(f"{problem}: decoding takes the plain path", stacklevel=3)
    return library


@cache
def try_to_load() -> tuple[ctypes.CDLL | None, str]:
    """The compiled library, or None and the reason.

    It is built in the temporary folder, and where that can't be written or runs no programs (a file system mounted
    with "noexec"), in the user's cache folder.
    """
    compiler = find_compiler()
    if compiler is None:
        return None, "no C++ compiler found (g++ or clang++)"
    problem = ""
    for parent in (tempfile.gettempdir, lambda: Path.home() / ".cache"):
        try:
            Path(parent()).mkdir(parents=True, exist_ok=True)
            # Windows keeps the file of a library that is in use: there it stays in the temporary folder.
            with tempfile.TemporaryDirectory(dir=parent(), ignore_cleanup_errors=True) as folder:
                return _declare(ctypes.CDLL(str(compile_library(compiler, Path(folder))))), ""
        except CompileError as error:
            return None, f"{compiler} could not compile the package's C++ ({error})"
        except (OSError, RuntimeError, AttributeError) as error:  # no home; not a library; a function is missing
            problem = problem or f"the compiled C++ could not be loaded ({error})"
    return None, problem


def needed_library() -> ctypes.CDLL:
    """The compiled library for those who cannot do without. Raises RuntimeError that says why there is none."""
    library, problem = try_to_load()
    if library is None:
        raise RuntimeError(f"{problem}, expected g++ or clang++: install one, or use F.linear and F.gelu")
    return library


class CompileError(Exception):
    """The compiler's first line of complaint."""


def compile_library(compiler: str, folder: Path) -> Path:
    """Compile and link the .cpp files in `folder`; returns the library's path. Raises CompileError."""
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    flags, link, name = ["-fPIC"], [], "fast.so"
    if sys.platform == "win32":
        flags, link, name = [], ["-static"], "fast.dll"  # Python does not look for the compiler's DLLs
        if "clang" not in compiler:  # GCC aligns the stack to 16 bytes there, and AVX vectors need more (its bug 54412)
            flags = ["-Wa,-muse-unaligned-vector-move"]
    objects, library = [folder / f"{source.stem}.o" for source in SOURCES], folder / name
    for threads in (["-fopenmp"], []):  # Apple's compiler knows no OpenMP: one thread then
        # In two steps: linking with -ffast-math would switch off denormal numbers in the whole process.
        options = ["-O3", native, "-std=c++17", "-ffast-math", "-Wno-unknown-pragmas", *flags, *threads]
        steps = [
            [compiler, *options, "-c", str(source), "-o", str(target)]
            for source, target in zip(SOURCES, objects, strict=True)
        ]
        steps.append([compiler, "-shared", *link, *threads, *map(str, objects), "-o", str(library)])
        for step in steps:
            result = subprocess.run(step, capture_output=True, text=True, encoding="utf-8", errors="replace")
            if result.returncode:
                break
        else:
            return library
    raise CompileError((result.stderr.strip().splitlines() or ["no message"])[0])


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    library.decode_step.argtypes = [ctypes.POINTER(_Model), ctypes.POINTER(_Step), ctypes.c_int32]
    library.decode_step.restype = ctypes.c_int32
    pointer, whole = ctypes.c_void_p, ctypes.c_int32
    library.linear_tiled.argtypes = [pointer, pointer, pointer, whole, whole, whole, pointer, pointer, whole, whole]
    library.linear_tiled.restype = None
    library.workspace_size.argtypes = [whole, whole, whole]
    library.workspace_size.restype = ctypes.c_int64
    library.gelu_tanh.argtypes = [pointer, pointer, ctypes.c_int64, whole, whole]
    library.gelu_tanh.restype = None
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
    """Symmetric per-row int8 quantisation: weight [rows, K] -> (int8 [rows, K], scale float32 [rows]).

    The largest magnitude of a row becomes 127, so weight is about quantized * scale[:, None], off by at most scale / 2.
    A row of zeros gets scale 0. Done in pieces: a table of 257,216 rows in float32 would not fit twice.
    """
    quantized = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(weight.shape[0])
    for start in range(0, weight.shape[0], rows_at_once):
        rows = weight[start : start + rows_at_once].detach().float()
        step = rows.abs().amax(dim=1) / 127  # [rows]
        scale[start : start + rows_at_once] = step
        quantized[start : start + rows_at_once] = (rows / step.clamp(min=1e-30)[:, None]).round().to(torch.int8)
    return quantized, scale


# ---------------------------------------------------------------------------------------------------------- the prompt


def refusal(x: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None) -> str | None:
    """Why gemm.cpp must not be given these tensors, in words; None when it may."""
    tensors = [tensor for tensor in (x, weight, bias) if tensor is not None]
    for tensor in tensors:
        if tensor.dtype not in TYPES or tensor.dtype != x.dtype or tensor.device.type != "cpu":
            kinds = ", ".join(f"{tensor.dtype} on {tensor.device}" for tensor in tensors)
            return f"the tensors are {kinds}; expected all float32 or all bfloat16, on the CPU"
    if torch.is_autocast_enabled("cpu") or (
        torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    ):
        return "gradients and autocast are not supported: use torch.no_grad(), or F.linear and F.gelu"
    if weight is None or (
        weight.ndim == 2
        and 0 < weight.shape[1] == (x.shape[-1] if x.ndim else None)
        and (bias is None or bias.shape == weight.shape[:1])
    ):
        return None
    shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
    return f"the shapes are {shapes}; expected x [..., K], weight [rows, K] and bias [rows]"


def check_suitable(*tensors: torch.Tensor | None) -> None:
    """Raise ValueError for what gemm.cpp must not be given."""
    reason = refusal(*tensors)
    if reason is not None:
        raise ValueError(reason)


def tiled_linear(
    x: torch.Tensor, weight: torch.Tensor, bias=None, workspace: torch.Tensor | None = None
) -> torch.Tensor:
    """F.linear by gemm.cpp: x [..., K], weight [rows, K], bias [rows] or None -> [..., rows].

    All float32 or all bfloat16; sums are float32 in both, and rounded once. `workspace`: float32 memory that it may
    write into, enlarged in place when it is too small. (Memory that is used again is faster than fresh memory.)
    Raises ValueError for other types, devices and shapes, and where gradients are asked for; RuntimeError where the
    .cpp files can't be compiled.
    """
    check_suitable(x, weight, bias)
    library, (rows, K), threads = needed_library(), weight.shape, torch.get_num_threads()
    x, weight = x.contiguous(), weight.contiguous()
    M = x.numel() // K
    workspace = torch.empty(0) if workspace is None else workspace
    needed = library.workspace_size(M, K, threads)
    if len(workspace) < needed:
        workspace.resize_(needed)
    output = torch.empty(*x.shape[:-1], rows, dtype=x.dtype)
    bias = None if bias is None else bias.contiguous()  # named, so that the memory lives until it was read
    pointers = weight.data_ptr(), x.data_ptr(), None if bias is None else bias.data_ptr()
    is_float32 = x.dtype == torch.float32
    library.linear_tiled(*pointers, M, K, rows, output.data_ptr(), workspace.data_ptr(), threads, is_float32)
    return output


def fast_gelu(x: torch.Tensor) -> torch.Tensor:
    """F.gelu(x, approximate="tanh") by gemm.cpp, float32 or bfloat16: torch's takes two to five times as long.

    Raises ValueError for other types and devices, and where gradients are asked for; RuntimeError where the .cpp
    files can't be compiled.
    """
    check_suitable(x)
    x = x.contiguous()
    output = torch.empty_like(x)
    is_float32 = x.dtype == torch.float32
    needed_library().gelu_tanh(x.data_ptr(), output.data_ptr(), x.numel(), torch.get_num_threads(), is_float32)
    return output


def nearest_power_of_two(number: int) -> int:
    return 2 ** round(math.log2(number))


def linear_saves(tokens: int, rows: int, K: int, dtype: torch.dtype) -> float:
    """Seconds that gemm.cpp saves (negative: loses) against torch for that many tokens and a matrix [rows, K].

    Measured here, when it is asked for the first time, for the power of two that is nearest to `tokens`.
    """
    return _linear_saves(nearest_power_of_two(tokens), rows, K, dtype, torch.get_num_threads())


def gelu_saves(count: int, dtype: torch.dtype) -> float:
    """The same for GELU of that many numbers."""
    return _gelu_saves(nearest_power_of_two(count), dtype, torch.get_num_threads())


@cache
def _linear_saves(tokens: int, rows: int, K: int, dtype: torch.dtype, threads: int) -> float:
    x, weight = torch.ones(tokens, K, dtype=dtype), torch.ones(rows, K, dtype=dtype)
    tiled = partial(tiled_linear, workspace=torch.empty(0))
    return difference(lambda: F.linear(x, weight), lambda: tiled(x, weight))


@cache
def _gelu_saves(count: int, dtype: torch.dtype, threads: int) -> float:
    x = torch.ones(count, dtype=dtype)
    return difference(lambda: F.gelu(x, approximate="tanh"), lambda: fast_gelu(x))


@cache
def detour() -> float:
    """Seconds that one call of a torch function takes longer inside `with FastOperations():`."""
    x = torch.ones(1)

    def calls():
        for _ in range(200):
            F.relu(x)

    def calls_inside():
        with FastOperations():
            calls()

    return difference(calls_inside, calls) / 200


def difference(first: Callable, second: Callable, rounds: int = 4) -> float:
    """How many seconds longer `first` takes than `second`: the least of a few runs each, by turns."""
    least = [math.inf, math.inf]
    for _ in range(rounds):
        for i, function in enumerate((first, second)):
            start = perf_counter()
            function()
            least[i] = min(least[i], perf_counter() - start)
    return least[0] - least[1]


class FastOperations(TorchFunctionMode):
    """Inside `with FastOperations():` F.linear of 8 or more vectors is `tiled_linear` and GELU is `fast_gelu`, where
    these are the faster ones.

    (nn.Linear calls F.linear, so the model need not know.) Everything else, mistakes included, is torch's. Every torch
    function makes a detour through this class; `calls` counts them, and `saved` adds up the seconds that were gained.
    """

    def __init__(self):
        super().__init__()
        self.workspace = torch.empty(0)  # for all products of this block
        self.calls, self.saved = 0, 0.0
        self.tiled = {}  # "rows x K" -> was it multiplied by gemm.cpp?

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.calls += 1
        if func is F.linear and len(args) >= 2:
            x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("bias")
            if weight.ndim == 2 and x.numel() >= 8 * weight.shape[1] > 0 and refusal(x, weight, bias) is None:
                if self.pays(linear_saves(x.numel() // weight.shape[1], *weight.shape, x.dtype), weight):
                    return tiled_linear(x, weight, bias, self.workspace)
        if func is F.gelu and kwargs == {"approximate": "tanh"} and args[0].numel() and refusal(args[0]) is None:
            if self.pays(gelu_saves(args[0].numel(), args[0].dtype)):
                return fast_gelu(*args)
        return func(*args, **kwargs)  # this method itself is out of the way while it runs

    def pays(self, seconds: float, weight: torch.Tensor | None = None) -> bool:
        self.saved += max(seconds, 0)
        if weight is not None:
            self.tiled[" x ".join(map(str, weight.shape))] = seconds > 0
        return seconds > 0


# ------------------------------------------------------------------------------------------------------ the fast model


def prepare_for_decode(model: PaliGemmaForConditionalGeneration, weights: str | None = None):
    """A model that decodes fast; give it to `generate` in place of `model`, which stays as it is.

    `weights`: None keeps the model's own (float32 or bfloat16), which are read where they are and not copied; "int8"
    makes 8-bit copies for decoding (half the bytes of bfloat16, so up to twice the speed; logits change, see
    docs/performance.md). Prepare again after the weights have changed.

    Returns the model itself, with a warning, where the .cpp files can't be compiled, and for a model with a part that
    is not the package's own: a class put in by `swap`, a LoRA adapter that is not merged, a replaced method. (Hooks
    are respected: while there are any, every call takes the model.) Raises ValueError for a model that is not on the
    CPU or in another dtype and for another value of `weights`, TypeError for what is no model.
    """
    check_choice("weights", weights or "own", ("own", "int8"))
    if not takes_fast_steps(model):
        return model
    for dtype, device in {
        (model.dtype, model.device),
        *((p.dtype, p.device) for p in model.language_model.parameters()),
    }:
        if device.type != "cpu" or dtype not in TYPES:
            raise ValueError(
                f"the model is {dtype} on {device}; fast decoding needs float32 or bfloat16 on the CPU: "
                "load it with dtype= and device='cpu', or use the model as it is"
            )
    library = load_library()
    return model if library is None else FastPaliGemma(model, library, weights == "int8")


class FastPaliGemma(ModelWithFastStep):
    """Called like the model it holds. A single new token takes gemv.cpp, everything else the model."""

    def __init__(self, model: PaliGemmaForConditionalGeneration, library: ctypes.CDLL, eight_bit: bool):
        super().__init__(model)
        self.library, self.eight_bit = library, eight_bit
        self._kept = []  # tensors that the structures point to
        self._versions = self._weight_versions()
        # By what is read ("prompts" or "pictures"), tokens (a power of two) and threads: which products gemm.cpp makes;
        # none where they save less than the detour of all others costs.
        self.tiled: dict[tuple[str, int, int], dict[str, bool]] = {}
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
        quantized, scale = quantize_rows(weight)
        return _Matrix(self._pointer(quantized), self._pointer(scale), EIGHT_BIT)

    def weight_bytes(self) -> int:
        """Bytes of weights that one step reads (the embedding counts once: as the head)."""
        matrices = [getattr(layer, name) for layer in self._layers for name in "q k v o gate up down".split()]
        sizes = {tensor.data_ptr(): tensor.nbytes for tensor in self._kept}
        return sum(sizes[matrix.weights] for matrix in [*matrices, self._model.head])

    def _weight_versions(self) -> list[tuple]:
        """Where the decoder's weights lie and how often each was written to: changes when they do."""
        parameters = (held for *_, parts in self.parts for held in parts if isinstance(held, torch.Tensor))
        return [(tensor.data_ptr(), None if tensor.is_inference() else tensor._version) for tensor in parameters]

    def changed(self) -> str | None:
        foreign = super().changed()
        if foreign is None and (not self.same_objects() or self._weight_versions() != self._versions):
            return "the weights have changed since prepare_for_decode (call it again)"
        return foreign

    def prompt(self, *arguments) -> PaliGemmaOutput:
        return self.with_tiles("prompts", arguments[0].numel(), lambda: self.model(*arguments))

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """As the model's."""
        tokens = len(pixel_values) * self.config.vision_config.num_image_tokens
        return self.with_tiles("pictures", tokens, lambda: self.model.get_image_features(pixel_values))

    def with_tiles(self, what: str, tokens: int, read: Callable):
        """What `read` returns, with products by gemm.cpp if that pays for so many tokens."""
        size = what, nearest_power_of_two(max(1, tokens)), torch.get_num_threads()
        if torch.is_grad_enabled() or self.tiled.get(size) == {}:
            return read()
        with FastOperations() as operations:
            output = read()
        self.tiled[size] = operations.tiled if operations.saved > operations.calls * detour() else {}
        return output

    def step(self, input_ids, attention_mask, token_type_ids, kv_cache) -> torch.Tensor:
        """One token for each row: input_ids [B, 1] -> logits [B, 1, V] float32."""
        B, T = attention_mask.shape
        tokens = input_ids.to(torch.int64).contiguous()
        if attention_mask.stride() != token_type_ids.stride() or attention_mask.stride(1) != 1:
            attention_mask, token_type_ids = attention_mask.contiguous(), token_type_ids.contiguous()
        if not (kv_cache.keys.is_contiguous() and kv_cache.values.is_contiguous()):
            raise ValueError("the cache's tensors are views, expected the contiguous ones that KVCache makes")
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
        refused = self.library.decode_step(self._model, step, self.dtype == torch.float32)
        if refused == BAD_TOKEN:
            raise ValueError(f"token ids must lie from 0 to {self._model.V - 1}, these are {tokens.flatten().tolist()}")
        if refused == BAD_TYPE:
            raise ValueError("token_type_ids holds a negative number, expected 0 (picture and prompt) and 1 (answer)")
        return logits

    def describe(self) -> str:
        weights = "8-bit" if self.eight_bit else str(self.dtype).removeprefix("torch.")
        parts = [f"one token: gemv.cpp, {weights} weights"]
        for (what, tokens, _), tiled in self.tiled.items():
            sizes = [[size for size in tiled if tiled[size] == by_us] for by_us in (True, False)]
            ways = [f"{way} for {', '.join(s)}" for way, s in zip(("gemm.cpp", "torch"), sizes, strict=True) if s]
            parts.append(f"{what} of about {tokens} tokens: {', '.join(ways) or 'torch'}")
        return "; ".join(parts) if self.tiled else f"{parts[0]}; prompts: measured when the first comes"
