"""The one object with memory: a model's variables, how it is trained, and where a fit stands.

Longer than a file should be, since all that rebinds variables is to stand in one place.
"""

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.api import saving
from llmasos_xla.api._checks import check_layout, check_whole, class_weights, fitted_preprocessing
from llmasos_xla.api.layout import settled
from llmasos_xla.api.recipe import Recipe
from llmasos_xla.compiling import CompileRecord, compile
from llmasos_xla.core import Net, Variables
from llmasos_xla.data.dataset import Dataset
from llmasos_xla.data.preprocessing import Preprocessing
from llmasos_xla.models.spec import StackSpec
from llmasos_xla.sharding.agreement import agree, meet
from llmasos_xla.sharding.mesh import MeshSpec, divided
from llmasos_xla.sharding.placement import Placement
from llmasos_xla.sharding.threads import warn_if_few
from llmasos_xla.sharding.transfer import fetch, put
from llmasos_xla.training import loop
from llmasos_xla.training.callbacks import Callback
from llmasos_xla.training.evaluation import Evaluator, Predictor
from llmasos_xla.training.history import History
from llmasos_xla.training.losses import check_targets
from llmasos_xla.training.pipelined import pipeline_of
from llmasos_xla.training.placed import shardings_of, whole_batches
from llmasos_xla.training.report import reporter
from llmasos_xla.training.step import Objective, TrainState, new_state
from llmasos_xla.training.tuning import Tuning

if TYPE_CHECKING:
    from llmasos_xla.api.keeping import Keeper


class Unfinished(NamedTuple):
    """A fit that was interrupted."""

    request: dict[str, Any]
    """What it was asked for; the same request goes on with it."""
    position: loop.Position
    history: History


class Tools(NamedTuple):
    """What trains, evaluates and predicts, with its compiled programs; made anew when what it stands on changes."""

    objective: Objective
    evaluator: Evaluator
    predictor: Predictor
    steps: dict[Any, loop.Step]


class Learner:
    """What both front doors stand on.

    Args:
        spec: the model's layers.
        seed: of the initial weights, the data's order and the network's randomness.
    """

    def __init__(self, spec: StackSpec, *, seed: int = 0):
        self.spec, self.seed = spec, seed
        self.recipe: Recipe | None = None
        self.tuning = Tuning()
        self.preprocessing: Preprocessing | None = None
        self.epochs_done = 0
        self.compiled: list[CompileRecord] = []
        self.unfinished: Unfinished | None = None
        self.placement: Placement | None = None
        """Where the arrays lie on a mesh; None for one device."""
        self._net: Net | None = None
        self._state: TrainState | Variables | None = None
        # What of the state's arrays somebody else may hold, so that a fit may not take it for its own.
        self._lent: Literal["nothing", "variables", "all"] = "all"
        # The thread that fits: it alone may read variables whose memory the next step takes.
        self._fitting: int | None = None
        self._tools: Tools | None = None

    # Building

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        """Makes the initial weights, for samples of `input_shape` if the layers did not say; once."""
        if self._net is not None:
            return
        if self.spec.input_shape is None and input_shape is not None:
            self.spec = dataclasses.replace(self.spec, input_shape=tuple(input_shape))
        net = self.spec.net()
        out = None
        if self.placement is not None:
            # Each device makes its own part: no device ever holds the whole model.
            abstract = jax.eval_shape(net.init, jax.random.key(0))
            out = shardings_of(self.placement, abstract, abstract)
        init = compile(
            net.init, jax.random.key(self.seed), what="initial weights", once=True, out=out, log=self.compiled
        )
        self._state, self._lent = init(jax.random.key(self.seed)), "nothing"
        self._net = net

    def shard(self, shard: Any) -> None:
        """Lays the model out over a mesh: a strategy's name, a `MeshSpec`, or None to leave it where it is."""
        if shard is None:
            return
        if self._fitting is not None:
            raise RuntimeError("shard: this model is being fitted; wait for that fit to end")
        spec = MeshSpec.of(shard).over(jax.device_count())
        if self.placement is not None and self.placement.spec == spec:
            return
        if spec.devices > 1:
            warn_if_few()
        self.placement = None if spec.devices == 1 else Placement(spec, spec.mesh(), self.spec.stacked)
        self._tools = None
        if self._state is not None:
            self._state, self._lent = self._placed(self._state), "nothing"

    def _new_state(self, transformation: Any, ema: float | None) -> TrainState:
        """The state before the first step, each device making what it will hold of it."""
        variables = self._current
        if self.placement is None:
            return new_state(variables, transformation, ema)

        def start(variables: Variables) -> TrainState:
            return new_state(variables, transformation, ema)

        out = shardings_of(self.placement, jax.eval_shape(start, variables), variables)
        return compile(start, variables, what="optimizer state", once=True, out=out, log=self.compiled)(variables)

    def _placed(self, state: Any) -> Any:
        """A copy of the state where the placement wants it."""
        if self.placement is None:
            return jax.tree.map(jnp.copy, jax.device_put(fetch(state), jax.local_devices()[0]))
        variables = state.variables if isinstance(state, TrainState) else state
        return put(state, shardings_of(self.placement, state, variables))

    def _own(self, state: Any) -> Any:
        """A copy of the state, or of variables, where it lies."""
        return jax.tree.map(jnp.copy, state) if self.placement is None else self._placed(state)

    def _lend_variables(self) -> None:
        self._lent = "all" if self._lent == "all" else "variables"

    def compile(self, recipe: Recipe) -> None:
        """Sets how the model is trained; the optimizer's state is kept if it is the same optimizer."""
        if isinstance(self._state, TrainState) and not recipe.same_optimizer(self.recipe):
            self._state = self._state.variables
            self.unfinished = None
        self.recipe, self._tools = recipe, None

    def tune(self, tuning: Tuning) -> None:
        """Sets which arrays are trained; the optimizer begins anew if that changes."""
        if self._fitting is not None:
            raise RuntimeError("freeze: this model is being fitted; wait for that fit to end")
        variables = self._current
        tuning.check([*variables.params, *variables.state])
        if tuning != self.tuning:
            self.tuning, self._tools, self.unfinished = tuning, None, None
            self._state = variables

    def change(self, spec: StackSpec, variables: Variables, tuning: Tuning) -> None:
        """Takes another specification and its variables in the place of its own; the preprocessing stays."""
        if self._fitting is not None:
            raise RuntimeError("this model is being fitted; wait for that fit to end")
        self.spec, self.tuning = spec, Tuning()
        self._net, self._tools, self.unfinished = spec.net(), None, None
        if self.placement is not None:
            self.placement = Placement(self.placement.spec, self.placement.mesh, spec.stacked)
            variables = self._placed(variables)
        self._state, self._lent = variables, "all"
        self.tune(tuning)

    @property
    def transformation(self) -> Any:
        """The optimizer of the arrays that are trained, as an optax transformation."""
        assert self.recipe is not None
        return self.tuning.transformation(self.recipe.transformation(self.spec.stacked))

    @property
    def built(self) -> bool:
        """Whether the weights exist, so that the layers are settled."""
        return self._net is not None

    @property
    def variables(self) -> Variables:
        """The current weights. During a fit a copy, since the fit reuses the memory of its own."""
        variables = self._current
        if self._fitting is not None:
            return jax.tree.map(jnp.copy, variables)
        self._lend_variables()
        return variables

    @property
    def _current(self) -> Variables:
        self.build()
        self._refuse_other_thread()
        variables = self._state.variables if isinstance(self._state, TrainState) else self._state
        assert variables is not None
        return variables

    @variables.setter
    def variables(self, variables: Variables) -> None:
        now = self.variables
        for mine, theirs, kind in ((now.params, variables.params, "params"), (now.state, variables.state, "state")):
            wanted, came = ({n: (a.shape, str(a.dtype)) for n, a in d.items()} for d in (mine, theirs))
            if wanted != came:
                names = sorted(n for n in wanted.keys() | came.keys() if wanted.get(n) != came.get(n))
                raise ValueError(
                    f"variables: these {kind} do not fit: "
                    + "; ".join(f"{n}: wanted {wanted.get(n, 'none')}, got {came.get(n, 'none')}" for n in names)
                )
        if self._fitting is not None:
            raise RuntimeError("variables: they cannot be set during a fit; a callback may set them on its 'end' event")
        self._lend_variables()
        if isinstance(self._state, TrainState):
            average = None if self._state.average is None else variables.params
            self._state = TrainState(variables, self._state.optimizer, average, self._state.step)
        else:
            self._state = variables

    @property
    def evaluation_variables(self) -> Variables:
        """What predict and evaluate use: the averaged weights if the optimizer keeps them."""
        self._refuse_other_thread()
        if isinstance(self._state, TrainState):
            return loop.evaluation_variables(self._state)
        return self._current

    @property
    def training_state(self) -> TrainState | None:
        """Weights, optimizer state and step count; None before the first fit."""
        self._lent = "all"
        return self._state if isinstance(self._state, TrainState) else None

    def restore(self, variables: Variables, training: TrainState | None, epochs_done: int) -> None:
        """Takes over what a file held; the arrays must fit the specification."""
        self._net = self.spec.net()
        self._state, self.epochs_done, self._lent = training or variables, epochs_done, "all"

    def begin(self, variables: Variables) -> None:
        """Takes these in the place of the weights there were, before the first step; nobody else may hold them."""
        if self._fitting is not None:
            raise RuntimeError("this model is being fitted; wait for that fit to end")
        self._net, self._tools = self._net or self.spec.net(), None
        self._state, self._lent, self.epochs_done, self.unfinished = variables, "nothing", 0, None

    def take_up(self, state: TrainState, unfinished: Unfinished | None, epochs_done: int) -> None:
        """Goes to where a checkpoint of this same model stands; its arrays are given away."""
        self._state, self.unfinished, self.epochs_done, self._lent = state, unfinished, epochs_done, "nothing"

    # Training

    def fit(
        self,
        dataset: Dataset,
        *,
        epochs: int,
        batch_size: int | str,
        validation: Dataset | None = None,
        callbacks: Sequence[Callback] | Callback = (),
        class_weight: Mapping[int, float] | None = None,
        verbose: int = 1,
        workers: int = 0,
        steps_per_dispatch: int | None = None,
        shard: Any = None,
        model: Any = None,
        keeper: "Keeper | None" = None,
    ) -> History:
        """Trains for `epochs` epochs, or goes on with the same fit if it was interrupted; `keeper` saves it."""
        if self._fitting is not None:
            raise RuntimeError("fit: this model is being fitted already; wait for that fit to end")
        check_whole("fit", epochs=epochs, **({} if batch_size == "auto" else {"batch_size": batch_size}))
        if steps_per_dispatch is not None:
            check_whole("fit", steps_per_dispatch=steps_per_dispatch)
        callbacks = (callbacks,) if callable(callbacks) else tuple(callbacks or ())
        report = reporter(verbose if jax.process_index() == 0 else 0)
        started = time.time()
        self.settle(dataset)
        shard, rows = settled(self, shard, batch_size, len(dataset), report)
        self.shard(shard)
        if self.placement is not None:
            divided(rows, self.placement.spec)
            check_layout(self.spec, self.placement)
        # A batch larger than the data would repeat rows.
        batch_size = whole_batches(min(rows, len(dataset)), self.placement)
        self._prepare(dataset)
        labels = self._check_labels(dataset, "fit")
        if validation is not None:
            self._check_labels(validation, "fit: validation data")
        tools = self._toolbox()
        # Training alone is weighted: a validation loss is that of `evaluate`.
        objective = dataclasses.replace(
            tools.objective, class_weight=class_weights(class_weight, labels, self.spec.output_shape()[-1])
        )
        # Both seeds count: the model's and the data set's own.
        order_seed = self.seed + (dataset.seed << 32)
        request = {
            "rows": len(dataset),
            "batch_size": batch_size,
            "epochs": epochs,
            "seed": order_seed,
            "first_epoch": self.epochs_done,
        }
        agree(
            "fit",
            {
                "the model": self.spec.to_json(),
                "the data": [dataset.name, len(dataset), self.preprocessing.to_json()] if self.preprocessing else None,
                "the fit": request,
                "the updates so far": int(self._state.step) if isinstance(self._state, TrainState) else 0,
            },
        )
        recipe = self.recipe
        assert recipe is not None
        transformation = self.transformation
        if not isinstance(self._state, TrainState):
            self._state = self._new_state(transformation, recipe.ema)
        if keeper is not None:
            settings = {"validated": validation is not None, "class_weight": objective.class_weight}
            finished, found = keeper.take_up(self, request, callbacks, report, **settings)
            if finished and found is not None:
                return found
            if found is not None:
                steps_per_dispatch = steps_per_dispatch or found.steps_per_dispatch
        going_on = self.unfinished is not None and self.unfinished.request == request
        position = self.unfinished.position if going_on and self.unfinished else None
        history = self.unfinished.history if going_on and self.unfinished else History()
        state = self._state
        assert isinstance(state, TrainState)
        # The fit donates what it is given; what the user holds of the old weights stays alive.
        if self._lent == "variables":
            state = dataclasses.replace(state, variables=self._own(state.variables))
        elif self._lent == "all":
            state = self._own(state)
        job = loop.Job(
            objective=objective,
            optimizer=transformation,
            dataset=dataset,
            preprocessing=self.preprocessing,
            batch_size=batch_size,
            first_epoch=self.epochs_done,
            epochs=epochs,
            seed=self.seed,
            order_seed=order_seed,
            ema=recipe.ema,
            validation=validation,
            workers=workers,
            steps_per_dispatch=steps_per_dispatch,
            placement=self.placement,
            steps=tools.steps,
            pipeline=None
            if self.placement is None
            else pipeline_of(self.spec, objective, state.variables, self.placement, batch_size),
        )
        if position is not None:
            report.note(f"going on with the interrupted fit in epoch {position.epoch + 1}")

        def keep(state: TrainState, position: loop.Position | None, ended: bool) -> None:
            self._state, self._lent = state, "nothing"
            self.unfinished = None if position is None else Unfinished(request, position, history)
            if ended:
                self._fitting = None
                if position is None:
                    self.epochs_done += len(history.epoch)

        self._fitting = threading.get_ident()
        try:
            loop.fit(
                job,
                state,
                keep,
                evaluator=tools.evaluator,
                callbacks=callbacks,
                model=model or self,
                report=report,
                history=history,
                resume=position,
                saving=None if keeper is None else keeper.saving(self, request, history, callbacks, report),
            )
        finally:
            self._fitting = None
            history.compiled += [r for r in self.compiled if r.started >= started and r not in history.compiled]
        return history

    def evaluate(
        self,
        dataset: Dataset,
        *,
        batch_size: int | None = None,
        workers: int = 0,
        verbose: int = 0,
        shard: Any = None,
    ) -> dict[str, float]:
        """Loss and metrics over the data set: `{"loss": ..., "accuracy": ...}`."""
        self.shard(shard)
        if batch_size is not None:
            check_whole("evaluate", batch_size=batch_size)
        report = reporter(verbose if jax.process_index() == 0 else 0)
        self._prepare(dataset)
        self._check_labels(dataset, "evaluate")
        logs = self._toolbox().evaluator(
            self.evaluation_variables, dataset, self.preprocessing, batch_size=batch_size, workers=workers
        )
        report.print("evaluate  " + "  ".join(f"{name} {value:.4f}" for name, value in logs.items()))
        return logs

    def predict(self, x: Any, shard: Any = None) -> Any:
        """Outputs [rows, ...] in float32 for raw input, an array or a Dataset."""
        self.shard(shard)
        if isinstance(x, Dataset):
            self._prepare(x)
            raw = x.take(np.arange(len(x))).x
        else:
            if self.preprocessing is None:
                self._prepare(Dataset(x, mode="test"))
            # A fit that was refused has settled the preprocessing and made no weights.
            self.build()
            raw = x
        assert self.preprocessing is not None
        return self.predict_encoded(self.encode(raw))

    def encode(self, raw: Any, who: str = "predict") -> Any:
        """Raw input [rows, ...] as the network takes it, checked; `who` opens the error texts."""
        assert self.preprocessing is not None
        x = self.preprocessing.encode(raw, who=who)
        if self.spec.reads_integers:
            self.spec.check_tokens(x)
        return x

    @property
    def outputs(self) -> Callable[[Variables, Any], Any]:
        """What `predict` computes of (variables, encoded input), as a pure function."""
        self.build()
        return self._toolbox().objective.predict

    def outputs_in(self, precision: str) -> Callable[[Variables, Any], Any]:
        """The same with the network's arithmetic in that precision, "float32" or "bfloat16"."""
        self.build()
        return dataclasses.replace(self._toolbox().objective, precision=precision).predict

    def predict_encoded(self, x: Any) -> Any:
        """Outputs for input that `encode` has brought into shape."""
        return self._toolbox().predictor(self.evaluation_variables, x)

    # Saving

    def save(self, path: str | os.PathLike, door: Mapping[str, Any]) -> None:
        """Writes the model, its preprocessing and its training state to a .h5 or .safetensors file.

        Of several processes all have to call; the first one writes.
        """
        from llmasos_xla.api import files

        meet("save")
        spec, arrays = files.to_file(self, door)
        if jax.process_index() == 0:
            saving.write(path, spec, arrays)

    def summary(self) -> str:
        """The layers, their output shapes and parameters, and what is done to raw input."""
        self.build()
        lines = [self.spec.table(self.variables)]
        if self.preprocessing is not None:
            lines.append(f"input: {self.preprocessing.describe()}")
        return "\n".join(lines)

    def _refuse_other_thread(self) -> None:
        if self._fitting not in (None, threading.get_ident()):
            raise RuntimeError("this model is being fitted in another thread; wait for that fit, or load a saved copy")

    def settle(self, dataset: Dataset) -> None:
        """Settles preprocessing and shapes when the first data are seen."""
        if self.preprocessing is None:
            self.preprocessing = fitted_preprocessing(dataset, self.spec)
        if self.spec.input_shape is None:
            shape = self.preprocessing.shape
            first = shape[self.spec.inputs[0]] if isinstance(shape, Mapping) else shape
            self.spec = dataclasses.replace(self.spec, input_shape=tuple(first))

    def _prepare(self, dataset: Dataset) -> None:
        """Settles preprocessing and weights when the first data are seen."""
        self.settle(dataset)
        assert self.preprocessing is not None
        self.build()
        if self.spec.reads_integers and dataset.in_memory:
            # A text's ids are those of the vocabulary, so its largest stands for all of them.
            size = self.preprocessing.vocabulary_size
            self.spec.check_tokens(np.array([[size - 1]]) if size else self.preprocessing.encode(dataset.rows().x))

    def _check_labels(self, dataset: Dataset, who: str) -> np.ndarray:
        if not dataset.has_labels:
            raise ValueError(f"{who}: the data have no labels; pass y, or a Dataset with a label column")
        if self.recipe is None:
            raise ValueError(f"{who}: how to train is not known yet; call compile(optimizer=, loss=, metrics=) first")
        assert self.preprocessing is not None
        labels = self.preprocessing.encode_labels(dataset.labels, who=who)
        check_targets(self.recipe.loss, labels, self.spec.output_shape(), self.preprocessing.label_names)
        return labels

    def _toolbox(self) -> Tools:
        if self._tools is None:
            assert self._net is not None
            assert self.preprocessing is not None
            recipe = self.recipe or Recipe.of("adam", "mean_squared_error")
            objective = Objective(
                net=self.tuning.net(self._net),
                loss=recipe.loss,
                metrics=recipe.metrics,
                head=self.spec.head,
                prepare=self.preprocessing.on_device,
                precision=recipe.precision,
            )
            self._tools = Tools(
                objective,
                Evaluator(objective, log=self.compiled, placement=self.placement),
                Predictor(objective, log=self.compiled, placement=self.placement),
                {},
            )
        return self._tools
