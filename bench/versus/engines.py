"""Engines: each holds copies of a problem in the form that suits it best, and computes it with `run(copy)`.

A constructor raises `Unsupported` where the engine has no kernel for the shape. Results come from `output()`, as f32
[batch][query_len][q_heads][head_dim], after a run.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import os

import numpy as np
import torch

import pagedkv
from shapes import Problem, Shape

TORCH_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class Unsupported(Exception):
    """The engine cannot compute this shape; the text says why."""


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    return torch.from_numpy(values).to(TORCH_DTYPES[dtype]).float().numpy()


def tensor(values: np.ndarray, dtype: str) -> torch.Tensor:
    return torch.from_numpy(values).to(TORCH_DTYPES[dtype])


class Pagedkv:
    """This library: pages of 16 tokens, [page][kv_head][K, V][token][dim], in random order."""

    name = "pagedkv"
    page_size = 16

    def __init__(self, problem: Problem, threads: int):
        s = problem.shape
        pages_each = s.context // self.page_size
        pages_a_copy = s.batch * pages_each
        order = torch.randperm(s.copies * pages_a_copy, generator=torch.Generator().manual_seed(1)).int()
        self.pages = torch.empty(s.copies * pages_a_copy, s.kv_heads, 2, self.page_size, s.head_dim,
                                 dtype=TORCH_DTYPES[s.dtype])

        def as_pages(rows: np.ndarray) -> torch.Tensor:
            split = tensor(rows, s.dtype).reshape(s.batch, s.kv_heads, pages_each, self.page_size, s.head_dim)
            return split.permute(0, 2, 1, 3, 4).reshape(pages_a_copy, s.kv_heads, self.page_size, s.head_dim)

        self.plans = []
        for copy in range(s.copies):
            table = order[copy * pages_a_copy:(copy + 1) * pages_a_copy]
            self.pages[table.long(), :, 0] = as_pages(problem.k)
            self.pages[table.long(), :, 1] = as_pages(problem.v)
            self.plans.append(
                pagedkv.AttentionPlan(num_q_heads=s.q_heads, num_kv_heads=s.kv_heads, head_dim=s.head_dim,
                                      page_size=self.page_size, dtype=s.dtype, f16_as_bf16=s.f16_as_bf16,
                                      qo_indptr=[b * s.query_len for b in range(s.batch + 1)],
                                      block_table=table.reshape(s.batch, pages_each).numpy(),
                                      seq_lens=[s.context] * s.batch))
        self.k, self.v = self.pages[:, :, 0], self.pages[:, :, 1]
        self.q = tensor(problem.q, s.dtype).reshape(-1, s.q_heads, s.head_dim)
        self.out = torch.empty_like(self.q)

    def run(self, copy: int) -> None:
        self.plans[copy].run(self.k, self.v, self.q, out=self.out)

    def output(self, shape: Shape) -> np.ndarray:
        return self.out.float().numpy().reshape(shape.batch, shape.query_len, shape.q_heads, shape.head_dim)


class TorchSdpa:
    """torch.nn.functional.scaled_dot_product_attention over contiguous [batch][heads][tokens][dim].

    In decode the query heads of a group become rows of one head, which reads each key once; else enable_gqa.
    """

    name = "PyTorch SDPA"

    def __init__(self, problem: Problem, threads: int):
        s = problem.shape
        self.shape = s
        torch.set_num_threads(threads)
        k, v = tensor(problem.k, s.dtype), tensor(problem.v, s.dtype)
        self.k = [k.clone() for _ in range(s.copies)]
        self.v = [v.clone() for _ in range(s.copies)]
        q = tensor(problem.q, s.dtype)
        self.options: dict = {}
        if s.decode:
            self.q = q.reshape(s.batch, s.kv_heads, s.q_heads // s.kv_heads, s.head_dim)
        else:
            self.q = q.permute(0, 2, 1, 3).contiguous()
            self.options = {"enable_gqa": s.q_heads != s.kv_heads}
            if s.query_len == s.context:
                self.options["is_causal"] = True
            else:
                visible = torch.ones(s.query_len, s.context, dtype=torch.bool)
                self.options["attn_mask"] = visible.tril(s.context - s.query_len)

    def run(self, copy: int) -> None:
        self.out = torch.nn.functional.scaled_dot_product_attention(self.q, self.k[copy], self.v[copy], **self.options)

    def output(self, shape: Shape) -> np.ndarray:
        if shape.decode:
            return self.out.float().numpy().reshape(shape.batch, 1, shape.q_heads, shape.head_dim)
        return self.out.float().numpy().transpose(0, 2, 1, 3)


class OnnxRuntime:
    """com.microsoft.GroupQueryAttention with past and present in one buffer, so that nothing is copied."""

    name = "ONNX Runtime GQA"

    def __init__(self, problem: Problem, threads: int):
        import onnx
        import onnxruntime
        s = problem.shape
        if s.dtype == "bf16":
            raise Unsupported("no bf16 kernel on CPUs")
        numpy_type = np.float16 if s.dtype == "f16" else np.float32
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
        self.bindings = []
        for _ in range(s.copies):
            binding = self.session.io_binding()
            for name, array in fixed.items():
                binding.bind_ortvalue_input(name, array)
            for name, rows in (("k", problem.k), ("v", problem.v)):
                buffer = value(tensor(rows, s.dtype).clone().numpy())
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

        def cache(array: np.ndarray) -> openvino.Tensor:
            split = tensor(array, s.dtype).reshape(s.batch, s.kv_heads, blocks_each, block, s.head_dim)
            ordered = split.permute(0, 2, 1, 3, 4).reshape(-1, s.kv_heads, block, s.head_dim).contiguous()
            bits = ordered.view(torch.int16 if s.dtype != "f32" else torch.float32).numpy()
            self.keep.append(bits)
            return openvino.Tensor(bits, openvino.Shape(list(ordered.shape)), precision)

        self.caches = [(cache(problem.k), cache(problem.v)) for _ in range(s.copies)]

    def run(self, copy: int) -> None:
        self.request.set_tensor("key_cache.0", self.caches[copy][0])
        self.request.set_tensor("value_cache.0", self.caches[copy][1])
        self.request.infer()

    def output(self, shape: Shape) -> np.ndarray:
        out = self.request.get_output_tensor(0).data
        return np.array(out, np.float32).reshape(shape.batch, shape.query_len, shape.q_heads, shape.head_dim)


class Ggml:
    """ggml_flash_attn_ext, as llama.cpp calls it, over contiguous [batch][heads][tokens][dim]; f32 queries."""

    name = "llama.cpp (ggml)"
    types = {"f32": 0, "f16": 1, "bf16": 30}

    class InitParams(ctypes.Structure):
        _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]

    class ComputePlan(ctypes.Structure):
        _fields_ = [("work_size", ctypes.c_size_t), ("work_data", ctypes.c_void_p), ("n_threads", ctypes.c_int),
                    ("threadpool", ctypes.c_void_p), ("abort_callback", ctypes.c_void_p),
                    ("abort_callback_data", ctypes.c_void_p), ("use_ref", ctypes.c_bool)]

    @staticmethod
    def load() -> ctypes.CDLL:
        folder = os.path.dirname(importlib.util.find_spec("xllamacpp").origin)
        library = ctypes.CDLL(glob.glob(folder + "/xllamacpp*.so")[0])
        for name in ("ggml_init", "ggml_new_tensor_4d", "ggml_new_tensor_2d", "ggml_flash_attn_ext", "ggml_new_graph",
                     "ggml_get_data"):
            getattr(library, name).restype = ctypes.c_void_p
        library.ggml_tensor_overhead.restype = library.ggml_graph_overhead.restype = ctypes.c_size_t
        library.ggml_graph_plan.restype = Ggml.ComputePlan
        return library

    def __init__(self, problem: Problem, threads: int):
        s = problem.shape
        lib = self.lib = self.load()
        lib.ggml_cpu_init()
        mask_bytes = 0 if s.decode else 2 * s.context * s.query_len
        rows_bytes = 8 * s.batch * s.query_len * s.q_heads * s.head_dim
        overhead = (2 + 8 * s.copies) * lib.ggml_tensor_overhead() + s.copies * lib.ggml_graph_overhead() + (1 << 20)
        size = s.copies * (s.kv_bytes + rows_bytes) + rows_bytes + mask_bytes + overhead
        self.memory = torch.zeros(size, dtype=torch.uint8)
        self.context = ctypes.c_void_p(
            lib.ggml_init(self.InitParams(size, self.memory.data_ptr(), False)))

        def filled(values: torch.Tensor, kind: int) -> ctypes.c_void_p:
            extents = [ctypes.c_int64(extent) for extent in reversed(values.shape)]
            made = ctypes.c_void_p(lib.ggml_new_tensor_4d(self.context, kind, *extents))
            ctypes.memmove(lib.ggml_get_data(made), values.data_ptr(), values.numel() * values.element_size())
            return made

        q = filled(torch.from_numpy(problem.q.transpose(0, 2, 1, 3).copy()), self.types["f32"])
        mask = None
        if not s.decode:
            hidden = torch.full((1, 1, s.query_len, s.context), float("-inf"), dtype=torch.float16)
            mask = filled(hidden.triu(s.context - s.query_len + 1), self.types["f16"])
        self.graphs, self.outs = [], []
        scale, zero = ctypes.c_float(s.head_dim**-0.5), ctypes.c_float(0)
        for _ in range(s.copies):
            k = filled(tensor(problem.k, s.dtype), self.types[s.dtype])
            v = filled(tensor(problem.v, s.dtype), self.types[s.dtype])
            out = ctypes.c_void_p(lib.ggml_flash_attn_ext(self.context, q, k, v, mask, scale, zero, zero))
            graph = ctypes.c_void_p(lib.ggml_new_graph(self.context))
            lib.ggml_build_forward_expand(graph, out)
            self.graphs.append(graph)
            self.outs.append(out)
        self.plan = lib.ggml_graph_plan(self.graphs[0], threads, None)
        self.work = torch.empty(self.plan.work_size + 64, dtype=torch.uint8)
        self.plan.work_data = self.work.data_ptr()
        self.last = 0

    def run(self, copy: int) -> None:
        if self.lib.ggml_graph_compute(self.graphs[copy], ctypes.byref(self.plan)) != 0:
            raise RuntimeError("ggml_graph_compute failed")
        self.last = copy

    def output(self, shape: Shape) -> np.ndarray:
        count = shape.batch * shape.query_len * shape.q_heads * shape.head_dim
        data = (ctypes.c_float * count).from_address(self.lib.ggml_get_data(self.outs[self.last]))
        return np.array(data, np.float32).reshape(shape.batch, shape.query_len, shape.q_heads, shape.head_dim)


#: (module that must be importable, engine), in the order of the columns; the first is what the others are compared with.
ENGINES = [("pagedkv", Pagedkv), ("torch", TorchSdpa), ("onnxruntime", OnnxRuntime), ("openvino", OpenVino),
           ("xllamacpp", Ggml)]
