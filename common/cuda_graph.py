"""A training step as one CUDA graph: one launch instead of hundreds, each a call from Python.

A graph repeats its kernels with the arguments and addresses of the capture. What changes from step
to step therefore has to be in device tensors that stay where they are: the inputs, which are copied
into tensors of the graph, Adam's learning rate, and the weights. Anything else that Python decides
in the step would stay as it was in the capture, unnoticed.
"""

import collections

import torch

from common.errors import UserError

WARM_UP = 3  # steps before the capture, in which the libraries choose kernels and take memory
AHEAD = 2  # steps by which Python may be ahead of the GPU; then it waits, for signals and progress


class Step:
    """Calls step(*inputs), which takes tensors of fixed shapes on the GPU and returns one.

    capture: whether to capture the fourth call as a CUDA graph and replay it from then on. The
    tensor that a replay returns holds its values until the next call. Raises UserError if the step
    cannot be captured.
    """

    def __init__(self, step, capture):
        self.step, self.capture = step, capture
        self.stream, self.ahead = torch.cuda.Stream(), collections.deque()
        self.calls, self.graph = 0, None

    def __call__(self, *inputs):
        self.calls += 1
        if self.capture and self.calls <= WARM_UP:
            # A graph cannot be captured on the default stream.
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                output = self.step(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
        elif self.capture:
            if self.graph is None:
                self.record(inputs)
            for own, given in zip(self.inputs, inputs, strict=True):
                own.copy_(given)
            self.graph.replay()
            output = self.output
        else:
            output = self.step(*inputs)
        self.ahead.append(torch.cuda.Event())
        self.ahead[-1].record()
        if len(self.ahead) > AHEAD:
            self.ahead.popleft().synchronize()
        return output

    def record(self, inputs):
        self.inputs = [given.clone() for given in inputs]
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.output = self.step(*self.inputs)
        except RuntimeError as error:
            cause = " ".join(str(error).split())[:160]
            raise UserError(
                f"the step cannot be captured as a CUDA graph ({cause}). It may wait for a value, "
                "as .item() does. Change that, or train with --CUDA_GRAPHS=False."
            ) from None
