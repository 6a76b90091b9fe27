"""Correct scale and bias of every layer against the float model, layer after layer; no gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from numpy.typing import NDArray

from qcompile.calibration.affine import AffineKernels, by_channel
from qcompile.data.dataset import Dataset
from qcompile.errors import InputError
from qcompile.execution.fragment import boundary, fragment
from qcompile.execution.spool import Spool
from qcompile.execution.twins import SAMPLES, Pair, before_quantizer, correction, float_steps
from qcompile.ir import Constant
from qcompile.outcomes import Corrected
from qcompile.program.lower import Step, lower
from qcompile.progress import track
from qcompile.qmodel import QModel
from qcompile.quant.bias import take_up
from qcompile.runtime.session import Session

# At 8 bits throughout the error is small and all else takes little time: as many as have so many input elements in all.
ELEMENTS_AT_8_BITS, FEWEST, MOST = 5 << 18, 8, 64
BATCH_BYTES = 2 << 20  # of the inputs of one batch
Array = NDArray[Any]


@dataclass(frozen=True)
class CorrectBias:
    """Fit, per layer and output channel, the affine map from the quantized pre-activation to the float one.

    Each layer sees the codes that the corrected layers before it make, so errors are corrected where they arise and as
    they accumulate. Where the output enters a residual Add, the bias also takes up the mean error of the other operand.
    Layers run once on each side; what later layers need is kept on disk, so memory does not grow with the samples.
    A layer is left as it was, with a note, where a correction does not lower its error on samples that were held back
    from the fit: where a clipped outlier takes the mean along, a shift would ruin what is not clipped.
    """

    name: ClassVar[str] = "correct-bias"
    requires: ClassVar[tuple[str, ...]] = ("calibrate",)

    def run(self, model: QModel) -> int:
        """Correct `plan.weights` and `plan.biases`; return the number of layers."""
        if model.data is None:
            raise InputError("no calibration data", remedy="give samples with --data, or ask for --random-data")
        with Spool() as spool:
            correcting = _Correction(model, spool)
            for layer in track(correcting.layers, "correct bias", len(correcting.layers)):
                correcting.correct(layer)
        if correcting.layers:
            model.corrected = correcting.summary()
            model.journal.note(self.name, "layers corrected", **asdict(model.corrected))
        return len(correcting.layers)


@dataclass
class _Correction:
    """Two executions side by side, float and quantized, advanced one layer at a time over all batches."""

    model: QModel
    spool: Spool
    at: int = 0  # program steps done
    float_at: int = 0  # nodes of the float graph done
    sizes: list[int] = field(default_factory=list)  # samples of each batch
    refused: list[str] = field(default_factory=list)  # layers that are better without a correction
    worst: float = 0.0  # error that is left in a layer, as a share of the variance of its float values

    def __post_init__(self) -> None:
        model = self.model
        self.program = lower(model.graph, model.plan)
        self.steps = self.program.steps
        self.tensors = model.graph.tensors()
        self.constants = {name for name, tensor in self.tensors.items() if isinstance(tensor, Constant)}
        self.floats = float_steps(model.graph)
        self.places = {step.node.name: k for k, step in enumerate(self.floats) if step.node is not None}
        self.layers = [k for k, step in enumerate(self.steps) if self._correctable(step)]
        fleeting = set(vars(model.graph).get("exotic_types", {}))
        self.makers = {
            side: {value.name: step for step in steps for value in step.outputs if value.name in fleeting}
            for side, steps in (("f", self.floats), ("q", self.steps))
        }
        self.kernels = AffineKernels(model.config.threads)
        self._spool_inputs()

    def summary(self) -> Corrected:
        """Return what all layers came to."""
        corrected, unseen = len(self.layers) - len(self.refused), len(self.model.plan.weights) - len(self.layers)
        return Corrected(corrected, self.refused, self.worst, unseen)

    def _correctable(self, step: Step) -> bool:
        return step.is_layer and step.node is not None and step.node.name in self.model.plan.weights

    def _spool_inputs(self) -> None:
        data = self.model.data
        assert data is not None
        data = data.sample(self._samples(data), self.model.config.seed)
        one = sum(array.nbytes for array in next(iter(data.batches(1))).values())
        for feeds in data.batches(max(1, min(64, BATCH_BYTES // max(one, 1) // 4))):
            for name, array in feeds.items():
                for side in ("f", "q"):
                    self.spool.put(f"{side}:{name}", len(self.sizes), array)
            self.sizes.append(data.samples_in(feeds))

    def _samples(self, data: Dataset) -> int:
        placed = [node for node in self.model.plan.nodes.values() if node.weight_bits]
        if any(node.weight_bits < 8 or node.input_bits < 8 for node in placed):
            return SAMPLES
        elements = sum(array.size for array in data.first_of(next(data.batches(1))).values()) // (data.fixed_batch or 1)
        return max(FEWEST, min(MOST, ELEMENTS_AT_8_BITS // max(elements, 1)))

    def correct(self, index: int) -> None:
        """Run both sides up to and including the layer at step `index`, fit it, and store its corrected output."""
        step = self.steps[index]
        assert step.node is not None
        target, name, raw = step.outputs[0], step.node.name, before_quantizer(step).outputs[0].name
        steps = [*self.steps[self.at : index], before_quantizer(step)]
        float_end, exact = self.places[name] + 1, step.node.outputs[0].name
        quantized_run = self._segment("q", steps, self.steps[index + 1 :], {raw})
        float_run = self._segment("f", self.floats[self.float_at : float_end], self.floats[float_end:], {exact})

        def pairs() -> Iterator[Pair]:
            for batch, size in enumerate(self.sizes):
                f, q = float_run(batch)[exact], quantized_run(batch)[raw]
                yield f, q, size
                self.spool.put(f"q:{raw}", batch, q)

        weight = self.model.plan.weights[name]
        found = correction(self.program, step, weight, self.kernels, pairs(), self._kept)
        self.worst = max(self.worst, found.noise)
        if found.error == 1:
            self.refused.append(name)
        take_up(self.model.plan, name, step.input_scale, found.slope, found.shift)
        self.at, self.float_at = index + 1, float_end
        for batch in range(len(self.sizes)):
            q = self.spool.get(f"q:{raw}", batch)
            codes = self.kernels.apply(by_channel(q), found.slope, found.shift, target.quantizer)
            self.spool.put(f"q:{target.name}", batch, codes.reshape(q.shape))
        self._forget("q", self.steps[self.at :])
        self._forget("f", self.floats[self.float_at :])

    def _forget(self, side: str, later: Sequence[Step]) -> None:
        """Drop what no later step of one side reads."""
        needed = {f"{side}:{name}" for name in self._needed(side, later)[0]}
        for name in [name for name in self.spool.names() if name.startswith(f"{side}:") and name not in needed]:
            self.spool.drop(name)

    def _needed(self, side: str, steps: Sequence[Step]) -> tuple[set[str], list[Step]]:
        """Return the names of the arrays that `steps` read, and the steps that make what they read besides.

        Sequences cannot be kept: what they are made of is, and they are made again.
        """
        names, again = {value.name for step in steps for value in step.reads}, list[Step]()
        while fleeting := names & self.makers[side].keys():
            found = [step for step in map(self.makers[side].__getitem__, sorted(fleeting)) if step not in again]
            again = [*found, *again]
            names = names - fleeting | {value.name for step in found for value in step.reads}
        return names, again

    def _segment(self, side: str, steps: Sequence[Step], later: Sequence[Step], wanted: set[str]) -> Any:
        """Return a function batch -> outputs that runs `steps` on spooled values and spools what `later` reads."""
        again = [step for step in self._needed(side, steps)[1] if step not in steps]
        inputs, made = boundary([*again, *steps])
        inputs = [value for value in inputs if value.name and value.name not in self.constants]
        keep = sorted(made & self._needed(side, later)[0])
        outputs = sorted(wanted | set(keep))
        content = fragment(self.model.graph, self.model.plan, [*again, *steps], inputs, outputs)
        session = Session(content, threads=self.model.config.threads, fuse_qdq=False)

        def run(batch: int) -> dict[str, Array]:
            feeds = {value.name: self.spool.get(f"{side}:{value.name}", batch) for value in inputs}
            results = session.run(feeds)
            for name in keep:
                self.spool.put(f"{side}:{name}", batch, results[name])
            return results

        return run

    def _kept(self, exact: str, codes: str) -> Iterator[Pair]:
        """Yield the values of a tensor on both sides, batch by batch, if they are kept."""
        if self.spool.has(f"f:{exact}") and self.spool.has(f"q:{codes}"):
            for batch, size in enumerate(self.sizes):
                yield self.spool.get(f"f:{exact}", batch), self.spool.get(f"q:{codes}", batch), size
