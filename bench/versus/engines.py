"""Engines: each holds copies of a problem in the form that suits it best, and computes it with `run(copy)`.

A constructor raises `Unsupported` where the engine has no kernel for the shape. Results come from `output()`, as f32
[batch][query_len][q_heads][head_dim], after a run. Data lies in NumPy's memory, so that no peer is needed by another, and
engines import their own modules, so that one that is missing costs its own column only.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import math
import os

import ml_dtypes
import numpy as np

import pagedkv
from shapes import Problem, Shape

OS_PAGE_BYTES = 4096
DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "bytes": np.uint8}


class Unsupported(Exception):
    """The engine cannot compute this shape; the text says why."""


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    return values.astype(DTYPES[dtype]).astype(np.float32)


def aligned_empty(extents: tuple[int, ...], dtype: str) -> np.ndarray:
    """At the begin of an OS page, as pools lie; NumPy's own arrays are at a multiple of 16 bytes. Large ones in huge pages."""
    size = math.prod(extents) * np.dtype(DTYPES[dtype]).itemsize
    memory = np.empty(size + OS_PAGE_BYTES, np.uint8)
    begin = -memory.ctypes.data % OS_PAGE_BYTES
    return memory[begin:begin + size].view(DTYPES[dtype]).reshape(extents)


def converted(values: np.ndarray, dtype: str) -> np.ndarray:
    """A contiguous copy in the format."""
    copy = aligned_empty(values.shape, dtype)
    copy[...] = values
    return copy


def in_blocks(rows: np.ndarray, tokens: int) -> np.ndarray:
    """[batch][kv_heads][context][dim] -> [batch * context / tokens][kv_heads][tokens][dim], contiguous."""
    batch, heads, context, dim = rows.shape
    split = rows.reshape(batch, heads, context // tokens, tokens, dim).swapaxes(1, 2)
    return np.ascontiguousarray(split).reshape(-1, heads, tokens, dim)


def torch_view(values: np.ndarray):
    """The same memory as a tensor; PyTorch does not know NumPy's bfloat16."""
    import torch
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


class Pagedkv:
    """This library: pages of 16 tokens, [page][kv_head][K, V][token][dim], in random order."""

    name = "pagedkv"
    modules = ("pagedkv",)
    page_size = 16

    def __init__(self, problem: Problem, threads: int):
        s = problem.shape
        pages_each = s.context // self.page_size
        pages_a_copy = s.batch * pages_each
        order = np.random.default_rng(1).permutation(s.copies * pages_a_copy).astype(np.int32)
        self.pages = aligned_empty((s.copies * pages_a_copy, s.kv_heads, 2, self.page_size, s.head_dim), s.dtype)
        k, v = (in_blocks(converted(rows, s.dtype), self.page_size) for rows in (problem.k, problem.v))

        self.plans = []
        for copy in range(s.copies):
            table = order[copy * pages_a_copy:(copy + 1) * pages_a_copy]
            self.pages[table, :, 0], self.pages[table, :, 1] = k, v
            self.plans.append(
                pagedkv.AttentionPlan(num_q_heads=s.q_heads, num_kv_heads=s.kv_heads, head_dim=s.head_dim,
                                      page_size=self.page_size, dtype=s.dtype, f16_as_bf16=s.f16_as_bf16,
                                      qo_indptr=[b * s.query_len for b in range(s.batch + 1)],
                                      block_table=table.reshape(s.batch, pages_each),
                                      seq_lens=[s.context] * s.batch))
        self.k, self.v = self.pages[:, :, 0], self.pages[:, :, 1]
        self.q = converted(problem.q, s.dtype).reshape(-1, s.q_heads, s.head_dim)
        self.out = aligned_empty(self.q.shape, s.dtype)

    def run(self, copy: int) -> None:
        self.plans[copy].run(self.k, self.v, self.q, out=self.out)

    def output(self, shape: Shape) -> np.ndarray:
        return self.out.astype(np.float32).reshape(shape.batch, shape.query_len, shape.q_heads, shape.head_dim)


class TorchSdpa:
    """torch.nn.functional.scaled_dot_product_attention over contiguous [batch][heads][tokens][dim].

    In decode the query heads of a group become rows of one head, which reads each key once; else enable_gqa.
    """

    name = "PyTorch SDPA"
    modules = ("torch",)

    def __init__(self, problem: Problem, threads: int):
        import torch
        s = problem.shape
        self.shape = s
        torch.set_num_threads(threads)
        k, v = torch_view(converted(problem.k, s.dtype)), torch_view(converted(problem.v, s.dtype))
        self.k, self.v = ([rows.clone() for _ in range(s.copies)] for rows in (k, v))
        q = torch_view(converted(problem.q, s.dtype))
        self.attend = torch.nn.functional.scaled_dot_product_attention
        self.options: dict = {}
        if s.decode:
            self.q = q.reshape(s.batch, s.kv_heads, s.q_heads // s.kv_heads, s.head_dim)
        else:
            self.q = q.permute(0, 2, 1, 3).contiguous()
            self.options = {"enable_gqa": s.q_heads != s.kv_heads}
            if s.query_len == s.context:
                self.options["is_causal"] = True
            else:
                # Additive and in the format of the queries: a boolean one would be converted within every call.
                hidden = torch.ones(s.query_len, s.context, dtype=torch.bool).triu(s.context - s.query_len + 1)
                self.options["attn_mask"] = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill(hidden, float("-inf"))

    def run(self, copy: int) -> None:
        self.out = self.attend(self.q, self.k[copy], self.v[copy], **self.options)

    def output(self, shape: Shape) -> np.ndarray:
        if shape.decode:
            return self.out.float().numpy().reshape(shape.batch, 1, shape.q_heads, shape.head_dim)
        return self.out.float().numpy().transpose(0, 2, 1, 3)


class OnnxRuntime:
    """com.microsoft.GroupQueryAttention with past and present in one buffer, so that nothing is copied."""

    name = "ONNX Runtime GQA"
    modules = ("onnx", "onnxruntime")

    def __init__(self, problem: Problem, threads: int):
        import onnx
        import onnxruntime
        s = problem.shape
        if s.dtype == "bf16":
            raise Unsupported("no bf16 kernel on CPUs")
        numpy_type = DTYPES[s.dtype]
        element = onnx.TensorProto.FLOAT16 if s.dtype == "f16" else onnx.TensorProto.FLOAT
        make = onnx.helper.make_tensor_value_info
        cache = [s.batch, s.kv_heads, s.context, s.head_dim]
        inputs = [make("q", element, [s.batch, s.query_len, s.q_heads * s.head_dim]),
                  make("k", element, [s.batch, s.query_len, s.kv_heads * s.head_dim]),
                  make("v", element, [s.batch, s.query_len, s.kv_heads * s.head_dim]),
                  make("past_k", element, cache), make("past_v", element, cache),
                  make("seqlens_k", onnx.TensorProto.INT32, [s.batch]), make("total", onnx.TensorProto.INT32, [1])]
        outputs = [make("y", element, [s.batch, s.query_len, s.q_heads * s.head_dim]),
                   make("present_k", element, cache), make("present_v", element, cache)]
        node = onnx.helper.make_node("GroupQueryAttention", [i.name for i in inputs], [o.name for o in outputs],
                                     domain="com.microsoft", num_heads=s.q_heads, kv_num_heads=s.kv_heads)
        model = onnx.helper.make_model(onnx.helper.make_graph([node], "gqa", inputs, outputs),
                                       opset_imports=[onnx.helper.make_opsetid("", 18),
                                                      onnx.helper.make_opsetid("com.microsoft", 1)])
        model.ir_version = 10
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the others need the cores
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])

        def new_rows(rows: np.ndarray) -> np.ndarray:
            last = rows[:, :, s.context - s.query_len:].transpose(0, 2, 1, 3)
            return np.ascontiguousarray(last.reshape(s.batch, s.query_len, -1), dtype=numpy_type)

        value = onnxruntime.OrtValue.ortvalue_from_numpy
        fixed = {"q": value(problem.q.reshape(s.batch, s.query_len, -1).astype(numpy_type)),
                 "k": value(new_rows(problem.k)), "v": value(new_rows(problem.v)),
                 "seqlens_k": value(np.full(s.batch, s.context - 1, np.int32)),
                 "total": value(np.array([s.context], np.int32))}
        self.y = value(np.zeros((s.batch, s.query_len, s.q_heads * s.head_dim), numpy_type))
        caches = [("k", converted(problem.k, s.dtype)), ("v", converted(problem.v, s.dtype))]
        self.bindings = []
        for _ in range(s.copies):
            binding = self.session.io_binding()
            for name, array in fixed.items():
                binding.bind_ortvalue_input(name, array)
            for name, rows in caches:
                buffer = value(converted(rows, s.dtype))
                binding.bind_ortvalue_input("past_" + name, buffer)
                binding.bind_ortvalue_output("present_" + name, buffer)
            binding.bind_ortvalue_output("y", self.y)
            self.bindings.append(binding)

    def run(self, copy: int) -> None:
        self.session.run_with_iobinding(self.bindings[copy])

    def output(self, shape: Shape) -> np.ndarray:
        return self.y.numpy().astype(np.float32).reshape(shape.batch, shape.query_len, shape.q_heads, shape.head_dim)


class OpenVino:
    """The PagedAttention operation of OpenVINO's CPU plugin, alone in a model; its own pages of 32 tokens in order."""

    name = "OpenVINO paged"
    modules = ("openvino",)

    def __init__(self, problem: Problem, threads: int):
        import openvino
        from openvino import PartialShape, Type
        from openvino.op import Constant, Parameter, _PagedAttentionExtension
        s = problem.shape
        precision = {"f32": Type.f32, "f16": Type.f16, "bf16": Type.bf16}[s.dtype]

        def parameter(name: str, element: Type, extents: list[int]) -> Parameter:
            made = Parameter(element, PartialShape(extents))
            made.output(0).get_tensor().set_names({name})
            return made

        def empty(numpy_type: type, axes: int = 1) -> Constant:
            return Constant(np.zeros([0] * axes, numpy_type))

        def scalar(value: float, numpy_type: type) -> Constant:
            return Constant(np.array(value, numpy_type))

        rows = [parameter(name, Type.f32, [-1, heads * s.head_dim])
                for name, heads in (("query", s.q_heads), ("key", s.kv_heads), ("value", s.kv_heads))]
        caches = [parameter(name, Type.dynamic, [-1] * 4) for name in ("key_cache.0", "value_cache.0")]
        tables = [parameter(name, Type.i32, [-1])
                  for name in ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")]
        longest = parameter("max_context_len", Type.i32, [])
        node = _PagedAttentionExtension([n.output(0) for n in (
            *rows, *caches, *tables, scalar(s.head_dim**-0.5, np.float32), scalar(0, np.int32), empty(np.float32),
            longest, empty(np.int32),  # scale, window, ALiBi slopes, longest context, score aggregation
            empty(np.int32), empty(np.int32), empty(np.float32),  # cache rotation
            empty(np.float32), scalar(64, np.int32), scalar(16, np.int32),  # sparse prefill
            empty(np.float32, 4),  # sinks
            scalar(0, np.int32), empty(np.int32), empty(np.int32), empty(np.int32),  # eviction by diversity
            empty(np.int32), empty(np.uint8), empty(np.int32))])  # token types, bias among queries
        for key, value in (("num_k_heads", s.kv_heads), ("k_head_size", s.head_dim), ("num_v_heads", s.kv_heads),
                           ("v_head_size", s.head_dim)):
            node.get_rt_info()[key] = value
        model = openvino.Model([node.output(0)], [*rows, *caches, *tables, longest], "paged_attention")
        compiled = openvino.Core().compile_model(model, "CPU", {
            "INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision, "INFERENCE_NUM_THREADS": threads})
        block = compiled.input("key_cache.0").partial_shape[2].get_length()
        if compiled.input("key_cache.0").element_type != precision:
            raise Unsupported(f"its cache would not be {s.dtype}")
        self.request = compiled.create_infer_request()
        blocks_each = s.context // block
        past = s.context - s.query_len

        def put(name: str, array: np.ndarray) -> None:
            self.request.set_tensor(name, openvino.Tensor(np.array(array, order="C")))

        put("query", problem.q.reshape(-1, s.q_heads * s.head_dim))
        for name, array in (("key", problem.k), ("value", problem.v)):
            put(name, array[:, :, past:].transpose(0, 2, 1, 3).reshape(-1, s.kv_heads * s.head_dim))
        put("past_lens", np.full(s.batch, past, np.int32))
        put("subsequence_begins", np.arange(s.batch + 1, dtype=np.int32) * s.query_len)
        put("block_indices", np.arange(s.batch * blocks_each, dtype=np.int32))
        put("block_indices_begins", np.arange(s.batch + 1, dtype=np.int32) * blocks_each)
        put("max_context_len", np.array(s.context, np.int32))

        self.keep: list[np.ndarray] = []  # what the caches' tensors borrow

        k, v = (in_blocks(converted(rows, s.dtype), block) for rows in (problem.k, problem.v))

        def cache(values: np.ndarray) -> openvino.Tensor:
            blocks = converted(values, s.dtype)
            self.keep.append(blocks)
            bits = blocks if s.dtype == "f32" else blocks.view(np.int16)
            return openvino.Tensor(bits, openvino.Shape(list(blocks.shape)), precision)

        self.caches = [(cache(k), cache(v)) for _ in range(s.copies)]

    def run(self, copy: int) -> None:
        self.request.set_tensor("key_cache.0", self.caches[copy][0])
        self.request.set_tensor("value_cache.0", self.caches[copy][1])
        self.request.infer()

    def output(self, shape: Shape) -> np.ndarray:
        out = self.request.get_output_tensor(0).data
        return np.array(out, np.float32).reshape(shape.batch, shape.query_len, shape.q_heads, shape.head_dim)


class Vllm:
    """vLLM's paged attention for CPUs, its custom operations alone, without the engine; its pages of 128 tokens in order."""

    name = "vLLM paged"
    modules = ("torch", "vllm")
    block = 128

    @staticmethod
    def load() -> None:
        """Only the library that vLLM itself would choose for this CPU: its Python part needs much more installed."""
        import torch
        variant = "_C_AVX2"
        if torch.cpu._is_avx512_supported():
            variant = "_C" if torch.cpu._is_avx512_bf16_supported() else "_C_AVX512"
        folder = os.path.dirname(importlib.util.find_spec("vllm").origin)
        torch.ops.load_library(f"{folder}/{variant}.abi3.so")

    def __init__(self, problem: Problem, threads: int):
        import torch
        s = problem.shape
        self.load()
        torch.set_num_threads(threads)
        isa = "amx" if s.dtype == "bf16" and torch.cpu._is_amx_tile_supported() else "vec"
        tokens = s.batch * s.context
        blocks = tokens // self.block

        def rows(values: np.ndarray):
            """[batch][heads][tokens][dim] -> [batch * tokens][heads][dim]"""
            return torch_view(converted(values.swapaxes(1, 2).reshape(-1, s.kv_heads, s.head_dim), s.dtype))

        self.q = torch_view(converted(problem.q.reshape(-1, s.q_heads, s.head_dim), s.dtype))
        self.out = torch.empty_like(self.q)
        keys, values = rows(problem.k), rows(problem.v)
        starts = torch.arange(s.batch + 1, dtype=torch.int32) * s.query_len
        lengths = torch.full((s.batch,), s.context, dtype=torch.int32)
        table = torch.arange(blocks, dtype=torch.int32).reshape(s.batch, -1)
        schedule = torch.ops._C.get_scheduler_metadata(s.batch, s.q_heads, s.kv_heads, s.head_dim, lengths, self.q.dtype,
                                                       starts, True, -1, isa, True, None)
        self.caches = []
        for _ in range(s.copies):
            cache = torch_view(aligned_empty((blocks, s.kv_heads, 2 * self.block, s.head_dim), s.dtype))
            k, v = cache.chunk(2, dim=2)
            torch.ops._C.cpu_attn_reshape_and_cache(keys, values, k, v, torch.arange(tokens), isa)
            self.caches.append((k, v))
        self.attend = torch.ops._C.cpu_attention_with_kv_cache
        # scale, causal, no ALiBi, no window, pages, no soft cap, schedule, no sinks, causal for all alike
        self.arguments = (self.out, starts, lengths, s.head_dim**-0.5, True, None, -1, table, 0.0, schedule, None, None)

    def run(self, copy: int) -> None:
        self.attend(self.q, *self.caches[copy], *self.arguments)

    def output(self, shape: Shape) -> np.ndarray:
        return self.out.float().numpy().reshape(shape.batch, shape.query_len, shape.q_heads, shape.head_dim)


class Ggml:
    """ggml_flash_attn_ext, as llama.cpp calls it, over contiguous [batch][heads][tokens][dim]; f32 queries."""

    name = "llama.cpp (ggml)"
    modules = ("xllamacpp",)
    library = "/xllamacpp*.so"
    types = {"f32": 0, "f16": 1, "bf16": 30}

    class InitParams(ctypes.Structure):
        _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]

    class ComputePlan(ctypes.Structure):
        _fields_ = [("work_size", ctypes.c_size_t), ("work_data", ctypes.c_void_p), ("n_threads", ctypes.c_int),
                    ("threadpool", ctypes.c_void_p), ("abort_callback", ctypes.c_void_p),
                    ("abort_callback_data", ctypes.c_void_p), ("use_ref", ctypes.c_bool)]

    @classmethod
    def load(cls) -> ctypes.CDLL:
        folder = os.path.dirname(importlib.util.find_spec(cls.modules[0]).origin)
        library = ctypes.CDLL(glob.glob(folder + cls.library)[0])
        for name in ("ggml_init", "ggml_new_tensor_4d", "ggml_new_tensor_2d", "ggml_flash_attn_ext", "ggml_new_graph",
                     "ggml_get_data"):
            getattr(library, name).restype = ctypes.c_void_p
        library.ggml_tensor_overhead.restype = library.ggml_graph_overhead.restype = ctypes.c_size_t
        library.ggml_graph_plan.restype = cls.ComputePlan
        return library

    def __init__(self, problem: Problem, threads: int):
        s = problem.shape
        lib = self.lib = self.load()
        if hasattr(lib, "ggml_cpu_init"):  # ik_llama.cpp's has none
            lib.ggml_cpu_init()
        mask_bytes = 0 if s.decode else 2 * s.context * s.query_len
        rows_bytes = 8 * s.batch * s.query_len * s.q_heads * s.head_dim
        overhead = (2 + 8 * s.copies) * lib.ggml_tensor_overhead() + s.copies * lib.ggml_graph_overhead() + (1 << 20)
        size = s.copies * (s.kv_bytes + rows_bytes) + rows_bytes + mask_bytes + overhead
        self.memory = aligned_empty((size,), "bytes")
        self.context = ctypes.c_void_p(
            lib.ggml_init(self.InitParams(size, self.memory.ctypes.data, False)))

        def filled(values: np.ndarray, kind: int) -> ctypes.c_void_p:
            extents = [ctypes.c_int64(extent) for extent in reversed(values.shape)]
            made = ctypes.c_void_p(lib.ggml_new_tensor_4d(self.context, kind, *extents))
            ctypes.memmove(lib.ggml_get_data(made), values.ctypes.data, values.nbytes)
            return made

        q = filled(np.ascontiguousarray(problem.q.transpose(0, 2, 1, 3)), self.types["f32"])
        mask = None
        if not s.decode:
            hidden = np.triu(np.ones((s.query_len, s.context), bool), s.context - s.query_len + 1)
            mask = filled(np.where(hidden, np.float16("-inf"), np.float16(0))[None, None], self.types["f16"])
        self.graphs, self.outs = [], []
        keys, values = converted(problem.k, s.dtype), converted(problem.v, s.dtype)
        scale, zero = ctypes.c_float(s.head_dim**-0.5), ctypes.c_float(0)
        for _ in range(s.copies):
            k, v = filled(keys, self.types[s.dtype]), filled(values, self.types[s.dtype])
            out = ctypes.c_void_p(lib.ggml_flash_attn_ext(self.context, q, k, v, mask, scale, zero, zero))
            graph = ctypes.c_void_p(lib.ggml_new_graph(self.context))
            lib.ggml_build_forward_expand(graph, out)
            self.graphs.append(graph)
            self.outs.append(out)
        self.plan = lib.ggml_graph_plan(self.graphs[0], threads, None)
        self.work = aligned_empty((self.plan.work_size + 64,), "bytes")
        self.plan.work_data = self.work.ctypes.data
        self.last = 0

    def run(self, copy: int) -> None:
        if self.lib.ggml_graph_compute(self.graphs[copy], ctypes.byref(self.plan)) != 0:
            raise RuntimeError("ggml_graph_compute failed")
        self.last = copy

    def output(self, shape: Shape) -> np.ndarray:
        count = shape.batch * shape.query_len * shape.q_heads * shape.head_dim
        data = (ctypes.c_float * count).from_address(self.lib.ggml_get_data(self.outs[self.last]))
        return np.array(data, np.float32).reshape(shape.batch, shape.query_len, shape.q_heads, shape.head_dim)


class IkGgml(Ggml):
    """ik_llama.cpp's form of the same operation; it ends the process where it has no kernel."""

    name = "ik_llama.cpp"
    modules = ("ik_llama_cpp",)
    library = "/lib/libggml.so"

    class ComputePlan(ctypes.Structure):
        _fields_ = [("work_size", ctypes.c_size_t), ("work_data", ctypes.c_void_p), ("n_threads", ctypes.c_int),
                    ("abort_callback", ctypes.c_void_p), ("abort_callback_data", ctypes.c_void_p)]

    def __init__(self, problem: Problem, threads: int):
        if problem.shape.dtype != "f16":
            raise Unsupported("of these formats the wheel's CPU kernels take f16 alone")
        super().__init__(problem, threads)


#: In the order of the columns; the first is what the others are compared with.
ENGINES = [Pagedkv, Vllm, TorchSdpa, OnnxRuntime, OpenVino, Ggml, IkGgml]

#: Peers of the field without a column, and why, as looked up on PyPI and in Debian 12.
NOT_COMPARED = ["SGLang: the wheel of its kernels (sglang-kernel 0.4.10) has those of GPUs only",
                "gemma.cpp: its wheel (pygemma 0.1.3) runs whole models only; Debian does not package it"]
