"""Tasks whose answer is a text that the model writes: going on with one, translating, summing up."""

from collections.abc import Iterator, Sequence
from typing import Any, final

from llmasos_xla.api.generate import generate
from llmasos_xla.api.pipelines.brought import Brought, one_or_many
from llmasos_xla.models.generation.protocol import Generative

MOST_ROWS = 16


class Writer:
    """A model that writes, with its tokenizer and what `lm.generate` is told.

    Args:
        brought: model and tokenizer.
        options: those of `lm.generate`.
        batch_size: texts that are written side by side.
    """

    def __init__(self, brought: Brought, options: dict[str, Any], batch_size: int):
        self.network, self.tokenizer = brought.network(), brought.tokenizer()
        self.options, self.batch_size = options, batch_size
        config = self.network.config
        if not isinstance(config, Generative):
            raise ValueError(f"pipeline: {brought.task!r} wants a model that writes; {config.who} does not")
        self.config = config

    def __call__(self, prompts: Sequence[str], options: dict[str, Any]) -> list[str]:
        """What is written after, or of, each prompt."""
        # Rows of a batch are as long as its longest prompt: like lengths together.
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        found = [""] * len(prompts)
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            texts = generate(
                self.network,
                [prompts[place] for place in places],
                tokenizer=self.tokenizer,
                **{**self.options, **options},
            )
            for place, text in zip(places, texts):
                found[place] = text
        return found

    def stream(self, prompt: str, options: dict[str, Any]) -> Iterator[str]:
        """The pieces of one text as they are written."""
        if not isinstance(prompt, str):
            raise TypeError(f"pipeline: stream wants one text, got {type(prompt).__name__}")
        options = {**self.options, **options, "stream": True}
        yield from generate(self.network, prompt, tokenizer=self.tokenizer, **options)


@final
class Generation:
    """`write("Once upon a time")` -> what follows; of a list of texts, a list. `write.stream(text)` yields its pieces.

    Options here and in the call are those of `lm.generate`: max_new_tokens, temperature, top_k, top_p, num_beams, stop.
    """

    def __init__(self, brought: Brought, *, batch_size: int = MOST_ROWS, **options: Any):
        self._writer = Writer(brought, options, batch_size)
        if self._writer.config.encoder_inputs:
            raise ValueError(
                f"pipeline: {brought.task!r} wants a model that goes on with a text; {self._writer.config.who} reads "
                'one and writes another: "translation", "summarization"'
            )

    def __call__(self, texts: str | Sequence[str], **options: Any) -> Any:
        """What the model writes after each text, without it."""
        items, alone = one_or_many(texts, "text", lambda given: isinstance(given, str))
        found = self._writer(items, options)
        return found[0] if alone else found

    def stream(self, text: str, **options: Any) -> Iterator[str]:
        """The pieces of what follows the text, as they are written."""
        return self._writer.stream(text, options)


@final
class Rewriting:
    """`translate("a dog runs")` -> the text that the decoder writes of it; of a list, a list; `.stream(text)` pieces.

    Args:
        brought: an encoder-decoder and its tokenizer.
        prefix: what stands ahead of each text, for models that are told their task: T5's "translate English to German:
            ", "summarize: ".
        batch_size: texts that are written side by side.
        **options: those of `lm.generate`.
    """

    def __init__(self, brought: Brought, *, prefix: str = "", batch_size: int = MOST_ROWS, **options: Any):
        self._writer, self._prefix = Writer(brought, options, batch_size), prefix
        config = self._writer.config
        if config.encoder_inputs[:1] != ("ids",):
            raise ValueError(
                f"pipeline: {brought.task!r} wants a model that reads a text and writes another; {config.who} does not"
            )

    def __call__(self, texts: str | Sequence[str], **options: Any) -> Any:
        """What the model writes of each text."""
        items, alone = one_or_many(texts, "text", lambda given: isinstance(given, str))
        found = self._writer([self._prefix + text for text in items], options)
        return found[0] if alone else found

    def stream(self, text: str, **options: Any) -> Iterator[str]:
        """The pieces of the text that it writes, as they are written."""
        return self._writer.stream(self._prefix + text if isinstance(text, str) else text, options)
