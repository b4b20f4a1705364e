"""The third front door: a model of the shelf, with published weights or fresh ones."""

import contextlib
import dataclasses
import os
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.api.fitted import Fitted
from llmasos_xla.core import Variables
from llmasos_xla.data.dataset import Dataset
from llmasos_xla.data.tokenizers.chat_template import ChatTemplate
from llmasos_xla.data.tokenizers.keeping import to_json
from llmasos_xla.data.tokenizers.opening import load_tokenizer
from llmasos_xla.data.tokenizers.protocol import Tokenizer
from llmasos_xla.errors import unknown
from llmasos_xla.models import pretrained
from llmasos_xla.models.config import Config
from llmasos_xla.models.generation.protocol import Generative
from llmasos_xla.models.pretrained.described import names_of_classes
from llmasos_xla.models.pretrained.loading import drawn
from llmasos_xla.models.spec import StackSpec
from llmasos_xla.models.streaming import Stream
from llmasos_xla.sharding.placement import Placement, current
from llmasos_xla.training.placed import Programs, shardings_of, whole_batches
from llmasos_xla.training.tuning import Tuning

_SOME_LENGTH = 8
"""Ids of a row that stands for all rows of ids."""


class Network(Fitted):
    """A model of the shelf: `lm.models.resnet50(...)` and `lm.load_pretrained(...)` make one.

    It is compiled, fitted, evaluated, saved, sharded and served as `Sequential` is; called, it gives its logits.

    Args:
        config: the model by its sizes.
        weights: a file or folder of published weights; fresh ones if None.
        seed: of the initial weights, the data's order and dropout; equal seeds give equal weights.
    """

    def __init__(self, config: Config, *, weights: str | os.PathLike | None = None, seed: int = 0):
        if not isinstance(config, Config):
            raise ValueError(
                f"Network: wants a configuration such as lm.models.ResNetConfig.resnet50(), got {type(config).__name__}"
            )
        self._set_up(config.spec(), seed)
        if weights is not None:
            self.read(weights)

    def read(
        self,
        weights: str | os.PathLike | Mapping[str, Any],
        *,
        shard: Any = None,
        source: str | None = None,
        ignored: str | Sequence[str] = (),
    ) -> None:
        """Takes published weights in the place of those it has.

        Args:
            weights: a file or folder, or arrays by the names that their source has for them.
            shard: a strategy's name or a `MeshSpec`: each device's part is read by itself, straight onto the mesh.
            source: "huggingface", "torch", "keras" or "llama2.c"; found from the names if None.
            ignored: a regular expression, or several, of names that are taken as not there.

        Raises FileNotFoundError, and ValueError that lists the arrays that are missing, left over or of another shape.
        """
        if isinstance(weights, str | os.PathLike):
            path = pathlib.Path(weights)
            self.folder = path if path.is_dir() else path.parent
            self._tokenizer = self._chat_template = None
            self.class_names = names_of_classes(self.folder)
        learner = self.learner
        if learner.spec.lora is not None:
            raise ValueError("read: the model has adapters, which were learnt beside other weights; merge_lora() first")
        learner.shard(shard)
        # What the weights may lack, a new head, is that of a fresh model of this seed.
        key, placement = jax.random.key(learner.seed), learner.placement
        learner.begin(
            pretrained.load(self.config, weights, source=source, ignored=ignored, key=key, placement=placement)
        )

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What `generate`, `finetune` and pipelines make ids of texts with: what was set, or that of `folder`.

        A file that `save` or `export` writes holds it, once it was used or set; that of a model which writes, always.
        """
        if self._tokenizer is None and self.folder is not None:
            with contextlib.suppress(FileNotFoundError):
                self._tokenizer = load_tokenizer(self.folder)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    @property
    def chat_template(self) -> ChatTemplate | None:
        """How a server makes a prompt of a conversation: what was set, or that of `folder`; files hold it."""
        if self._chat_template is None and self.folder is not None:
            self._chat_template = ChatTemplate.of_folder(self.folder)
        return self._chat_template

    @chat_template.setter
    def chat_template(self, template: ChatTemplate | str | None) -> None:
        self._chat_template = ChatTemplate(template) if isinstance(template, str) else template

    @property
    def config(self) -> Config:
        """The model by its sizes."""
        layer = self.learner.spec.layers[0]
        assert isinstance(layer, Config)
        return layer

    @property
    def plain_variables(self) -> Variables:
        """The weights as `config.net()` takes them: those that predict, with adapters merged in."""
        learner = self.learner
        variables, lora = learner.evaluation_variables, learner.spec.lora
        return variables if lora is None else lora.merged(variables)

    def new_head(self, **sizes: Any) -> tuple[str, ...]:
        """Gives the model other sizes, of its head: arrays that keep their name and shape stay, others are drawn anew.

        Args:
            **sizes: arguments of the configuration that change, classes=5 or task="tokens".

        Returns the names of the arrays that are new. The preprocessing and the optimizer's state are forgotten: they
        were of other labels. Raises ValueError for sizes that the configuration does not have, and for a model with
        adapters.
        """
        config = self.config
        known = {field.name for field in dataclasses.fields(config) if field.init}
        for name in sizes:
            if name not in known:
                raise unknown("new_head", f"size of {type(config).__name__}", name, known)
        spec, now = self._plain("new_head")
        config = dataclasses.replace(config, **sizes)
        wanted = jax.eval_shape(config.net().init, jax.random.key(0))
        old = {**now.params, **now.state}
        new = {**wanted.params, **wanted.state}
        fresh = tuple(name for name, a in new.items() if name not in old or old[name].shape != a.shape)
        key = jax.random.fold_in(jax.random.key(self.learner.seed), 2)
        arrays = {name: old[name] for name in new if name not in fresh}
        arrays |= drawn(config, fresh, key) if fresh else {}
        variables = Variables({n: arrays[n] for n in wanted.params}, {n: arrays[n] for n in wanted.state})
        spec = dataclasses.replace(spec, layers=(config,))
        self.learner.change(spec, variables, Tuning(frozen=self.learner.tuning.frozen))
        self.learner.preprocessing = self.class_names = None
        self._forget()
        return fresh

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The logits of a batch of ready inputs, arrays as the network takes them: no preprocessing is applied.

        Positional and keyword arguments are the inputs by the names of `config.inputs`; the program is compiled once
        for each shape. Raises TypeError for missing and unknown inputs.
        """
        x = self.config.bind(*inputs, **named)
        x = {name: jnp.asarray(a) for name, a in x.items()} if isinstance(x, Mapping) else jnp.asarray(x)
        self._check_ranks(x)
        variables, placement = self.learner.evaluation_variables, self.learner.placement
        if placement is None:
            if self._called is None:
                self._called = jax.jit(self._forward)
            return self._called(variables, x)
        rows = len(jax.tree.leaves(x)[0])
        size = whole_batches(rows, placement)
        x = jax.tree.map(lambda a: jnp.concatenate([a, jnp.repeat(a[:1], size - rows, 0)]) if size > rows else a, x)
        program = self._program(placement, size, variables, x)
        x = jax.device_put(x, placement.batch({"x": x})["x"])
        return jax.tree.map(lambda a: a[:rows], program(variables, x))

    def stream(self, *, batch: int = 1, chunk: int | None = None) -> Stream:
        """The network on sound that comes piece by piece, with the weights of this moment; see `models.Stream`.

        Raises ValueError for a network that does not stream.
        """
        return Stream(self.config, self.plain_variables, batch=batch, chunk=chunk)

    def _check_ranks(self, x: Any) -> None:
        wanted = self.learner.spec.input_shapes()
        for name, a in (x if isinstance(x, Mapping) else {self.config.inputs[0]: x}).items():
            if a.ndim != len(wanted[name]) + 1:
                shape = ", ".join(["batch", *("any" if n is None else str(n) for n in wanted[name])])
                raise ValueError(f"{self.config.who}: {name} [{shape}] is wanted, got the shape {a.shape}")

    def _forward(self, variables: Variables, x: Any) -> Any:
        placement = current()
        if placement is not None:
            variables = Variables(placement.gathered(variables.params), variables.state)
        return self.learner.spec.net().apply(variables, x, train=False)[0]

    def _program(self, placement: Placement, rows: int, variables: Variables, x: Any) -> Callable:
        shapes = (placement, str(jax.tree.map(lambda a: (a.shape, a.dtype), x)))
        if shapes not in self._on_mesh:

            def shardings(placement: Placement) -> tuple[tuple, Any]:
                weights = shardings_of(placement, variables, variables)
                return (weights, placement.batch({"x": x})["x"]), placement.replicated

            self._on_mesh[shapes] = Programs(placement, rows).compile(
                self._forward, variables, x, shardings=shardings, what=f"call of {rows} rows", log=self.learner.compiled
            )
        return self._on_mesh[shapes]

    def settle(self) -> None:
        """A model that goes on with ids needs no data to know how its input is prepared."""
        config, learner = self.config, self.learner
        if learner.preprocessing is None and isinstance(config, Generative) and not config.encoder_inputs:
            length = min(_SOME_LENGTH, config.context or _SOME_LENGTH)
            learner.settle(Dataset(np.zeros((1, length), np.int32), mode="test"))

    def _kept(self) -> dict[str, Any]:
        names = None if self.class_names is None else list(self.class_names)
        tokenizer, template = self._tokenizer, self._chat_template
        if isinstance(self.config, Generative):
            template = self.chat_template
            try:
                tokenizer = self.tokenizer
            except ImportError as error:
                warnings.warn(f"save: the tokenizer of {str(self.folder)!r} stays behind: {error}", stacklevel=4)
        found = {
            "tokenizer": None if tokenizer is None else to_json(tokenizer),
            "chat_template": None if template is None else template.to_json(),
            "class_names": names,
        }
        return {key: a for key, a in found.items() if a is not None}

    def _door(self) -> dict[str, Any]:
        return {"door": "Network"}

    @classmethod
    def _from_door(cls, entries: Mapping[str, Any]) -> "Network":
        network = object.__new__(cls)
        network._set_up(StackSpec(()), seed=0)
        return network

    def _set_up(self, spec: StackSpec, seed: int) -> None:
        super().__init__(spec, seed=seed)
        self.folder: pathlib.Path | None = None
        """Where its published weights were read from, with what else lies there."""
        self.class_names: tuple[str, ...] | None = None
        """What the outputs are called: set, or as the folder's config.json says; a file that `save` writes holds it."""
        self._tokenizer: Tokenizer | None = None
        self._chat_template: ChatTemplate | None = None
        self._forget()

    def _forget(self) -> None:
        self._called: Callable | None = None
        self._on_mesh: dict[Any, Callable] = {}
