"""Fine-tuning, as the doors have it: what is frozen, and adapters."""

import dataclasses
import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_xla.api.door import Door
from llmasos_xla.core import Variables
from llmasos_xla.models.lora import PREFIX, LoRA, adapters_in
from llmasos_xla.sharding.agreement import meet
from llmasos_xla.sharding.transfer import fetch
from llmasos_xla.storage.atomic import atomically
from llmasos_xla.training.tuning import Tuning, check_pattern

_METADATA = "llmasos_xla_lora"


class Adapters(NamedTuple):
    """What LoRA has learnt, apart from its model."""

    lora: LoRA
    arrays: dict[str, jax.Array]
    """"lora/<name of the kernel>/down" and ".../up"."""


class Tuned(Door):
    """Base of `Fitted`; never built itself."""

    def freeze(self, names: str) -> None:
        """Keeps arrays as they are in every fit to come: not a bit of them changes.

        They have no part in the optimizer's state, and no gradients are computed for them. What was frozen before
        stays so. Frozen statistics of batch normalization stay as well; a batch is normalized by its own in training.

        Args:
            names: a regular expression, searched for in the names of arrays: "embeddings|blocks/[0-3]/".

        Raises ValueError if no array's name matches, and if nothing would be left to train.
        """
        check_pattern("freeze", "names", names)
        tuning = self.learner.tuning
        self.learner.tune(dataclasses.replace(tuning, frozen=f"{tuning.frozen}|{names}" if tuning.frozen else names))

    def unfreeze(self) -> None:
        """Lets everything be trained again; beside adapters, what `add_lora` lets."""
        self.learner.tune(dataclasses.replace(self.learner.tuning, frozen=None))

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of the parameters that a fit changes."""
        return tuple(sorted(filter(self.learner.tuning.trains, self.learner.variables.params)))

    def add_lora(
        self,
        rank: int = 8,
        alpha: float | int = 16.0,
        where: str = LoRA.where,
        *,
        also: str | None = None,
    ) -> None:
        """Puts adapters beside kernels and freezes all else (Hu et al. 2021).

        A kernel is used as kernel + alpha / rank * down @ up. `up` is zero at first, so that the model is what it was.
        Adapters are arrays by name, "lora/<name of the kernel>/down" and ".../up".

        Args:
            rank: size of the product.
            alpha: how much it counts.
            where: a regular expression, searched for in the names of kernels: dense, attention, convolutions.
            also: a regular expression for what is trained besides, a new head: "classifier|pooler".

        Raises ValueError if there are adapters already, and for a pattern that matches no kernel.
        """
        lora = LoRA(rank, alpha, where)
        spec, variables = self._plain("add_lora")
        # Of the model's own seed, apart from its first weights.
        key = jax.random.fold_in(jax.random.key(self.learner.seed), 1)
        self._adapt(Adapters(lora, lora.init(key, variables.params)), spec, variables, also)

    def merge_lora(self) -> Adapters:
        """Adds the adapters to their kernels, so that the model is one without; everything is trained again.

        Returns the adapters, for `unmerge_lora` or `add_adapters`. Raises ValueError if there are none.
        """
        learner = self.learner
        lora, variables = self._lora("merge_lora"), learner.evaluation_variables
        adapters = Adapters(lora, adapters_in(variables.params))
        learner.change(dataclasses.replace(learner.spec, lora=None), lora.merged(variables), Tuning())
        self._forget()
        return adapters

    def unmerge_lora(self, adapters: Adapters) -> None:
        """Takes merged adapters out of their kernels again, within rounding, and puts them beside."""
        spec, variables = self._plain("unmerge_lora")
        base = adapters.lora.unmerged(variables, adapters.arrays)
        self._adapt(adapters, spec, Variables({n: base.params[n] for n in variables.params}, base.state), None)

    def add_adapters(self, adapters: Adapters, *, also: str | None = None) -> None:
        """Puts adapters that were learnt before, by this model or one of the same sizes, beside their kernels."""
        self._adapt(adapters, *self._plain("add_adapters"), also)

    def save_lora(self, path: str | os.PathLike) -> None:
        """Writes the adapters alone, and what is trained beside them, to a safetensors file of little size.

        Of several processes all have to call; the first one writes.
        """
        path = pathlib.Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"save_lora: {path.name!r} ends in {path.suffix!r}; wanted .safetensors")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"save_lora: there is no folder {str(path.parent)!r}; make it first")
        lora, params = self._lora("save_lora"), self.learner.evaluation_variables.params
        meet("save_lora")
        arrays = fetch({n: a for n, a in params.items() if self.learner.tuning.trains(n) or n.startswith(PREFIX)})
        if jax.process_index() == 0:
            from safetensors.numpy import save_file

            metadata = {_METADATA: json.dumps({"lora": lora.to_json(), "only": self.learner.tuning.only})}
            whole = {n: np.asarray(a, order="C") for n, a in arrays.items()}
            atomically(path, lambda temporary: save_file(whole, temporary, metadata=metadata))

    def load_lora(self, path: str | os.PathLike) -> None:
        """Adds the adapters of a file that `save_lora` wrote, and what was trained beside them.

        Raises FileNotFoundError, and ValueError for a file that is damaged, has no adapters or does not fit the model.
        """
        from llmasos_xla.storage import safetensors

        path = pathlib.Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"load_lora: there is no file {str(path)!r}")
        arrays = {name: jnp.array(a) for name, a in safetensors.read(path).items()}
        try:
            about = json.loads(safetensors.metadata(path)[_METADATA])
            lora, only = LoRA.from_json(about["lora"]), about["only"]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"load_lora: {path.name!r} holds no adapters of this package: {error!r}") from error
        check_pattern("load_lora", "what is trained beside the adapters", only)
        spec, variables = self._plain("load_lora")
        beside = {n: a for n, a in arrays.items() if not n.startswith(PREFIX)}
        wrong = [n for n, a in beside.items() if n not in variables.params or variables.params[n].shape != a.shape]
        if wrong:
            raise ValueError(f"load_lora: {path.name!r} does not fit the model: {', '.join(sorted(wrong)[:5])}")
        learnt = Variables({**variables.params, **beside}, variables.state)
        self._adapt(Adapters(lora, adapters_in(arrays)), spec, learnt, only)

    def _adapt(self, adapters: Adapters, spec: Any, variables: Variables, also: str | None) -> None:
        """Puts adapters beside the kernels of a model without any."""
        check_pattern("add_lora", "also", also)
        wanted = adapters.lora.shapes(variables.params)
        came = {name: tuple(a.shape) for name, a in adapters.arrays.items()}
        if wanted != came:
            names = sorted(n for n in wanted.keys() | came.keys() if wanted.get(n) != came.get(n))
            raise ValueError(
                f"LoRA: {len(names)} adapters do not fit the model: {names[0]} wants {wanted.get(names[0], 'none')}, "
                f"got {came.get(names[0], 'none')}"
            )
        only = also if also and also.startswith(f"^{PREFIX}") else f"^{PREFIX}|{also}" if also else f"^{PREFIX}"
        with_them = Variables({**variables.params, **adapters.arrays}, variables.state)
        self.learner.change(dataclasses.replace(spec, lora=adapters.lora), with_them, Tuning(only=only))
        self._forget()

    def _plain(self, who: str) -> tuple[Any, Variables]:
        learner = self.learner
        learner.build()
        if learner.spec.lora is not None:
            raise ValueError(f"{who}: the model has adapters already; call merge_lora() first")
        return learner.spec, learner.evaluation_variables

    def _lora(self, who: str) -> LoRA:
        if self.learner.spec.lora is None:
            raise ValueError(f"{who}: the model has no adapters; call add_lora() first")
        return self.learner.spec.lora

    def _forget(self) -> None:
        """Lets go of programs that were compiled for what the model was."""
