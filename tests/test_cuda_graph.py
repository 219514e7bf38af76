"""A step as one CUDA graph, without a GPU: fake tensors and a pretended graph say what it would do.

Fake tensors (torch._subclasses) have no values: all of a step runs but for its kernels, and a step
that waits for a value fails. The pretended graph notes the operations of a step on the CPU and
repeats them with the same arguments and tensors, as a real one does.
"""

import contextlib
import copy
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import dcgan
import train_model
from common import cuda_graph
from common.ema import update_ema
from common.errors import UserError

STEPS = (1, 2, 50_000)  # their learning rates differ


def storage(tensor):
    return tensor.untyped_storage()._cdata


class Recorder(TorchDispatchMode):
    """Notes (function, arguments, result) of each operation, and keeps all tensors alive."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        if function.namespace != "profiler":
            self.calls.append((function, arguments, named or {}, result))
        return result

    def frozen(self):
        """What a graph would freeze: functions, plain values, tensors that were there before."""
        made = set()
        for function, arguments, named, result in self.calls:

            def name(value, made=made):
                if not isinstance(value, torch.Tensor):
                    return value
                return "made in the step" if storage(value) in made else storage(value)

            yield str(function), tree_map(name, (arguments, named))
            kept = {storage(x) for x in tree_leaves((arguments, named)) if torch.is_tensor(x)}
            results = [x for x in tree_leaves(result) if torch.is_tensor(x)]
            made |= {storage(x) for x in results} - kept


@pytest.fixture
def pretended_gpu(monkeypatch):
    """All tensors say that they lie on a GPU."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)


def new_model(labels=0):
    shape = {"channels": 1, "labels": labels}
    arguments = {"generator": {"latent_dim": 100, **shape}, "discriminator": shape}
    return train_model.build(arguments, torch.device("cpu"))


def record_steps(dtype="bfloat16", labels=0, penalty=0.0):
    """Return what a graph would freeze of steps of one model, [[(function, values), ...], ...]."""
    model = new_model(labels)
    real, own_labels = torch.zeros(8, 1, 28, 28), torch.zeros(8, labels)
    recorders = [Recorder() for _ in STEPS]
    train_model.train_step(real, own_labels, model, dtype, penalty)  # makes the states of Adam
    with FakeTensorMode(allow_non_fake_inputs=True):
        for step, recorder in zip(STEPS, recorders, strict=True):
            train_model.set_learning_rate(model, step)
            with recorder:
                train_model.train_step(real, own_labels, model, dtype, penalty)
    return [list(recorder.frozen()) for recorder in recorders]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("labels", [0, 2])
@pytest.mark.parametrize("penalty", [0.0, 0.32])
def test_steps_on_a_gpu_wait_for_nothing_and_differ_in_nothing_but_values(
    pretended_gpu, dtype, labels, penalty
):
    first, *others = record_steps(dtype, labels, penalty)
    assert len(first) > 100 and any("fused_adam" in function for function, _ in first)
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            assert ours == theirs


def test_a_learning_rate_that_python_decides_is_found(pretended_gpu, monkeypatch):
    def set_a_number(model, step):
        model.optimizer_g.param_groups[0]["lr"] = 1e-4 / step

    monkeypatch.setattr(train_model, "set_learning_rate", set_a_number)
    first, *_, last = record_steps()
    different = [ours for ours, theirs in zip(first, last, strict=True) if ours != theirs]
    assert different and all("fused_adam" in function for function, _ in different)


def test_a_tensor_that_is_made_anew_is_found(pretended_gpu, monkeypatch):
    monkeypatch.setattr(
        train_model,
        "set_learning_rate",
        lambda model, _: model.optimizer_d.param_groups[0].update(lr=torch.ones(())),
    )
    first, second, _ = record_steps()
    assert first != second


def test_a_shift_that_python_knows_is_found(pretended_gpu, monkeypatch):
    def on_cpu(texture, images):
        top, left = torch.randint(2, (2,)).tolist()
        return texture.places(texture.bands(images[:, :, top:, left:][..., :26, :26])).mean((2, 3))

    monkeypatch.setattr(dcgan.Texture, "forward", on_cpu)
    with pytest.raises(DataDependentOutputException):
        record_steps()


class PretendedGraph(Recorder):
    """torch.cuda.CUDAGraph on a CPU. Capturing runs the step; the first replay does nothing."""

    captured = False

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function is torch.ops.aten._local_scalar_dense.default:  # of .item() and .tolist()
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        return super().__torch_dispatch__(function, types, arguments, named)

    @torch.no_grad()
    def replay(self):
        for function, arguments, named, result in self.calls if self.captured else ():
            kept = {storage(x) for x in tree_leaves((arguments, named)) if torch.is_tensor(x)}
            again = function(*arguments, **named)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if torch.is_tensor(old) and storage(old) not in kept:
                    old.copy_(new)
        self.captured = True


@pytest.fixture
def pretended_graph(monkeypatch):
    """torch.cuda with streams and graphs that run on the CPU. Returns the graphs and the waits."""
    made = {"graphs": [], "waits": 0}

    class Nothing:
        def __init__(self, *_, **__): ...
        def wait_stream(self, _): ...
        def record(self): ...

        def synchronize(self):
            made["waits"] += 1

    def graph():
        made["graphs"].append(PretendedGraph())
        return made["graphs"][-1]

    for name in ("Stream", "Event", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Nothing)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: graph)
    return made


def train(step_class, dtype, steps=10, tensor_rate=True):
    """Return the model and its sums of statistics after steps on noise, as Steps or plain ones.

    Every other step has a gradient penalty.
    """
    torch.manual_seed(0)
    model = new_model()
    for optimizer in (model.optimizer_g, model.optimizer_d):
        if tensor_rate:  # as on a GPU
            optimizer.param_groups[0]["lr"] = torch.tensor(train_model.LEARNING_RATE)
    plain = partial(train_model.train_step, model=model, dtype=dtype)
    kinds = [step_class(plain), step_class(partial(plain, penalty=0.32))]
    sums = torch.zeros(3)
    for number in range(1, steps + 1):
        real = torch.rand(8, 1, 28, 28) * 2 - 1
        train_model.set_learning_rate(model, 500 * number)  # it falls from the fifth step on
        sums += kinds[number % 2](real, torch.zeros(8, 0))
        update_ema(model.generator_ema, model.generator, 8 * number, 8, 10_000)
    return model, sums


def states(model):
    networks = model.generator, model.discriminator, model.generator_ema
    optimizers = [opt.state_dict()["state"] for opt in (model.optimizer_g, model.optimizer_d)]
    return tree_leaves([[network.state_dict() for network in networks], optimizers])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_replayed_run_is_the_plain_one_bit_for_bit(pretended_graph, dtype):
    captured, sums = train(lambda step: cuda_graph.Step(step, capture=True), dtype)
    plain, plain_sums = train(lambda step: step, dtype)
    assert len(pretended_graph["graphs"]) == 2
    assert pretended_graph["waits"] == 10 - 2 * cuda_graph.AHEAD
    assert torch.equal(sums, plain_sums)
    pairs = list(zip(states(captured), states(plain), strict=True))
    assert len(pairs) > 50 and all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_the_pretended_graph_freezes_a_number_as_a_real_one_would(pretended_graph):
    options = {"dtype": "float32", "tensor_rate": False}
    captured, _ = train(lambda step: cuda_graph.Step(step, capture=True), **options)
    plain, _ = train(lambda step: step, **options)
    assert not torch.equal(captured.generator.project.weight, plain.generator.project.weight)


def test_without_a_graph_the_steps_are_plain_and_still_not_far_ahead(pretended_graph):
    captured, _ = train(lambda step: cuda_graph.Step(step, capture=False), "float32")
    plain, _ = train(lambda step: step, "float32")
    assert not pretended_graph["graphs"]
    assert pretended_graph["waits"] == 10 - 2 * cuda_graph.AHEAD
    assert torch.equal(captured.generator.project.weight, plain.generator.project.weight)


def test_a_step_that_waits_for_a_value_is_refused_in_a_line(pretended_graph):
    step = cuda_graph.Step(lambda x: x * x.sum().item(), capture=True)
    for _ in range(cuda_graph.WARM_UP):
        step(torch.ones(2))
    with pytest.raises(UserError, match="not permitted when stream is capturing.*CUDA_GRAPHS=Fals"):
        step(torch.ones(2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("halvings", [0, 1, 2])
def test_one_convolution_gives_the_haar_bands_at_each_size(channels, halvings):
    images = torch.rand(4, channels, 26 << halvings, 26 << halvings) * 2 - 1
    texture = dcgan.Texture(channels, halvings, (2.6, 0.12, 0.10, 0.033))
    bands = texture.bands(images)
    assert bands.shape == (4, 4 * channels, 13, 13)
    by_convolution = dcgan.convolve(texture, images)
    torch.testing.assert_close(by_convolution, bands, atol=1e-5, rtol=1e-5)


def test_a_copy_of_the_texture_keeps_its_kernels_out_of_the_checkpoint():
    texture = copy.deepcopy(dcgan.Discriminator().textures[0])
    assert texture.kernels.shape == (4, 1, 2, 2)
    assert "kernels" not in texture.state_dict()
