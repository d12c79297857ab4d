"""Training steps and scoring on PyTorch's fake tensors of the device `cuda`, without a GPU.

They have shapes, dtypes and a device, but no values, and an operator that mixes devices fails as on
a GPU. PyTorch's build for CPUs lacks the device that its autograd engine asks for streams: a
library with one that does nothing is compiled, and loaded before PyTorch.
"""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow(12),
    pytest.mark.skipif(not shutil.which("g++"), reason="no compiler"),
]

DEVICE = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
using c10::Device, c10::DeviceIndex, c10::Stream;
using at::CUDAHooksRegistry, at::RegistererCUDAHooksRegistry;
const Device first{c10::DeviceType::CUDA, 0};
struct CUDAHooks final : at::CUDAHooksInterface {
  CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
};
REGISTER_CUDA_HOOKS(CUDAHooks);
struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  Device getDevice() const override { return first; }
  Device exchangeDevice(Device) const override { return first; }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, first); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, first); }
  void record(void**, const Stream&, DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
}
"""

PROGRAM = """
import ctypes, json, sys
ctypes.CDLL(sys.argv[1])
import numpy as np
import torch
from contextlib import contextmanager
from pathlib import Path
from families import FAMILIES
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForSequenceClassification
from xsweep.evaluator.models.cross_encoder import _keep_head_in_fp32
from xsweep.evaluator.models.tokenizer import load_tokenizer
from xsweep.evaluator.pairs import PairEncoder, PairIds
from xsweep.evaluator.scoring import score_pairs
from xsweep.evaluator.specs import ModelSpec, ScoringSpec
from xsweep.evaluator.varlen.attention import pack
from xsweep.trainer.batching import Assembler
from xsweep.trainer.distributed import process_group
from xsweep.trainer.engines.plain import PlainEngine
from xsweep.trainer.forward import Scorer
from xsweep.trainer.gradients import Budgets, Gradients
from xsweep.trainer.specs import TrainSpec
from xsweep.trainer.teachers import Sample

FakeTensorMode.avoid_device_init = True  # none is there to compute constants
torch.cuda.is_bf16_supported = lambda *_, **__: True
torch.cuda.amp.common.amp_definitely_not_available = lambda: False
torch.Tensor.pin_memory = lambda tensor: tensor
torch.Tensor.numpy = lambda tensor: np.zeros(tensor.shape, dtype=np.float32)

class Watch(TorchDispatchMode):
    # Lists operators, counts what the host reads of the device, and gives it a number.
    def __init__(self):
        super().__init__()
        self.names, self.reads = [], 0
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.names.append(name)
        if name == "_local_scalar_dense":
            self.reads += args[0].device.type == "cuda"
            return 1.0
        found = function(*args, **kwargs or {})
        on_gpu = any(t.is_cuda for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor))
        tensors = [t for t in tree_leaves(found) if isinstance(t, torch.Tensor)]
        self.reads += on_gpu and any(not tensor.is_cuda for tensor in tensors)
        return found

@contextmanager
def gpu(family):
    model = AutoModelForSequenceClassification.from_config(FAMILIES[family])
    _keep_head_in_fp32(model)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in model.modules():
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    moved = mode.from_tensor(tensor).detach().to("cuda")
                    module._parameters[name] = torch.nn.Parameter(moved)
            for name, tensor in module._buffers.items():
                if tensor is not None:
                    module._buffers[name] = mode.from_tensor(tensor).to("cuda")
        model.to = lambda device: model  # it is there, and fake parameters cannot be swapped
        with Watch() as watch:
            yield model, watch

def pairs_of(family):
    segments = family == "bert"
    return [PairIds(np.full(n, 5), np.arange(n) // 9 if segments else None) for n in (17, 9, 4)]

spec = TrainSpec.model_validate(json.loads(sys.argv[2]))
encoder = PairEncoder(load_tokenizer(ModelSpec(folder=spec.backbone.folder)))
texts = {f"d{n}": np.full(n + 3, 5) for n in range(9)}
queries = {"q0": np.full(3, 5), "q1": np.full(4, 5)}
samples = [
    Sample(q, tuple(texts), np.arange(9, dtype="f4"), np.eye(1, 9, dtype="f4")[0]) for q in queries
]
found = {"families": {}, "steps": {}, "scoring": {}}
for family in FAMILIES:
    for layout, bf16, dropout in (
        ("padded", True, True), ("packed", True, False), ("packed", False, True)
    ):
        if layout == "packed" and family.startswith("deberta"):
            continue
        with gpu(family) as (model, watch):
            if layout == "packed":
                inputs = pack(pairs_of(family)).each(lambda tensor: tensor.to("cuda"))
            else:
                ids = torch.full((3, 17), 5, device="cuda")
                inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            logits = Scorer(model.train(dropout), bf16=bf16)([inputs])
            logits.sum().backward()
            tensors = [logits, *(p.grad for p in model.parameters() if p.grad is not None)]
        kinds = sorted({f"{tensor.device} {tensor.dtype}" for tensor in tensors})
        is_varlen = "_varlen_attn_backward" in watch.names
        found["families"][f"{family} {layout} {bf16=}"] = [kinds, is_varlen]
for packed in (False, True):
    assembler = Assembler(spec, encoder, texts, queries, packed=packed, device="cuda")
    with process_group():
        with gpu("bert") as (model, _):
            scorer = Scorer(model.train(), bf16=True)
            engine = PlainEngine(scorer, spec.optimisation)
        budgets = Budgets(spec.optimisation.micro_batch_tokens, Path(sys.argv[3]))
        gradients = Gradients(spec, engine, scorer, assembler, budgets)
        prepared = gradients.prepare(samples, 0)
        with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
            gradients.add(samples, 0, prepared)
            engine.step(1e-3)
        places = {str(tensor.device) for tensor in engine.moments().values()}
        found["steps"][f"{packed=}"] = [sorted(places), watch.reads]
    with gpu("bert") as (model, watch):
        settings = ScoringSpec(precision="bf16", layout="unpadded" if packed else "padded")
        settings = settings.model_copy(update={"batch_tokens": 80})
        pairs, batches = [(queries["q0"], text) for text in texts.values()], []
        score_pairs(model, encoder, pairs, settings, progress=batches.append)
        found["scoring"][f"{packed=}"] = [len(batches), watch.reads]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    home, torch = tmp_path_factory.mktemp("device"), Path(find_spec("torch").origin).parent
    (home / "device.cpp").write_text(DEVICE)
    library = str(home / "device.so")
    built = ["g++", "-std=c++20", "-shared", "-fPIC", "-o", library, str(home / "device.cpp")]
    links = [f"-I{torch}/include", f"-L{torch}/lib", "-lc10", "-ltorch_cpu"]
    subprocess.run([*built, *links, f"-Wl,-rpath,{torch}/lib"], check=True)
    command = [sys.executable, "-c", PROGRAM, library, json.dumps(world.spec()), str(home)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_pass_of_every_family_stays_on_the_device_and_its_gradients_are_fp32(found):
    assert len(found["families"]) == 6 + 2 * 4
    assert {kind for kinds, _ in found["families"].values() for kind in kinds} == {
        "cuda:0 torch.float32"
    }
    by_kernel = {name for name, (_, is_varlen) in found["families"].items() if is_varlen}
    assert by_kernel == {name for name in found["families"] if name.endswith("packed bf16=True")}


@pytest.mark.parametrize("packed", ["packed=True", "packed=False"])
def test_the_host_reads_two_numbers_a_step_and_each_batch_of_scores_once(found, packed):
    assert found["steps"][packed] == [["cuda:0"], 2], "the loss and the gradient's norm"
    batches, reads = found["scoring"][packed]
    assert batches == reads > 1
