"""A loaded model that continues prompts, in batches or one prompt as a stream of text.

Importing this module does not import torch; loading a model does.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.command_line import UserError, say
from common.tokenizers import Tokenizer
from common.wording import counted
from pipeline.config.model import ModelConfig
from pipeline.inference.decoding.memory import DecodingMemory
from pipeline.inference.decoding.prompts import Prompt
from pipeline.inference.decoding.text import CompletionText
from pipeline.weights.formats.detect import EXPORTS, format_of
from pipeline.weights.formats.export import torch_dtype
from pipeline.weights.formats.stored_model import load_model

DECODINGS = ("autoregressive", "self_speculative")


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Options for continuing prompts."""

    n_heads_used: int
    """Number of heads, including the next-token head; 1 is autoregressive."""
    max_gen_len: int | None = None
    """Maximum number of tokens to generate; None is as many as the caches have room for."""
    temperature: float = 0.0
    """See `Sampling`."""
    top_p: float = 1.0
    """See `Sampling`."""
    seed: int = 1
    """Seed of the sampling."""
    stops: tuple[str, ...] = ()
    """Texts that end a completion, and are not part of it."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The completion of one prompt; its fields are those of `pipeline.generate --json`, in order."""

    prompt: str
    completion: str
    token_ids: list[int]
    decoding: str
    tokens_per_forward: float
    tokens_per_s: float

    @property
    def figures(self) -> str:
        """The number of tokens and the speed, for people to read."""
        return (
            f"[{counted(len(self.token_ids), 'token')}, {self.tokens_per_forward:.2f} tokens per forward, "
            f"{self.tokens_per_s:.1f} tokens/s]"
        )


@dataclass(frozen=True, kw_only=True)
class CompletedBatch:
    """The completions of prompts that were decoded together."""

    completions: list[Completion]
    seconds: float
    """Wall time of the whole batch."""


class Session:
    """A loaded model with its caches and its tokenizer.

    Attributes:
        decoder: the model and its caches.
        device: the device of both.
        dtype: the dtype of both, by its name in `DTYPES`.
    """

    def __init__(
        self,
        ckpt_dir: Path,
        tokenizer: Tokenizer,
        *,
        device: str | None,
        dtype: str | None,
        max_batch_size: int,
        max_seq_len: int,
        n_heads_used: int,
    ) -> None:
        """Load the weights, and allocate caches for the trunk and the first `n_heads_used` heads.

        Raises:
            UserError: the folder is not whole, the device cannot be used, or its memory is too small.
        """
        from pipeline.inference.decoding.decode import Decoder

        self.device, self.dtype = choose_precision(device, dtype)
        self._tokenizer, self._max_batch_size = tokenizer, max_batch_size
        say(f"loading {ckpt_dir} ({self.dtype} on {self.device})", file=sys.stderr)
        stored = format_of(ckpt_dir, among=EXPORTS).open(ckpt_dir)
        self._memory = DecodingMemory(
            config=stored.config,
            device=self.device,
            dtype=self.dtype,
            max_batch_size=max_batch_size,
            max_seq_len=max_seq_len,
            n_heads_used=n_heads_used,
        )
        self._memory.check()
        with self._memory.shortage_explained():
            self.decoder = Decoder(
                load_model(stored, device=self.device, dtype=torch_dtype(self.dtype)),
                max_batch_size=max_batch_size,
                max_seq_len=max_seq_len,
                n_heads_used=n_heads_used,
            )

    def batches(
        self, prompts: Sequence[Prompt], decoding: Decoding, *, seeds: Sequence[int] | None = None
    ) -> Iterator[CompletedBatch]:
        """Continue prompts, max_batch_size at a time, with a progress bar; yield each batch when it is finished.

        Args:
            prompts: the prompts.
            decoding: how they are continued.
            seeds: the seed of each prompt; without them, `decoding.seed` and the prompt's index decide it.

        Raises:
            UserError: the device's memory is too small, or the model's logits are not finite.
        """
        from tqdm import tqdm

        own = [(decoding.seed, index) for index in range(len(prompts))] if seeds is None else seeds
        with tqdm(desc=f"{decoding.n_heads_used} heads", unit="token", leave=False, disable=None) as bar:
            for first in range(0, len(prompts), self._max_batch_size):
                rows = slice(first, first + self._max_batch_size)
                yield self._continue(
                    prompts[rows], decoding, seeds=own[rows], on_tokens=lambda _text, n_new: bar.update(n_new)
                )

    def stream(self, prompt: Prompt, decoding: Decoding, *, on_text: Callable[[str], None]) -> Completion:
        """Continue one prompt, and call `on_text` with each piece of text as soon as later tokens cannot change it.

        Raises:
            UserError: the device's memory is too small, or the model's logits are not finite.
        """
        n_passed = 0

        def pass_on(text: str) -> None:
            nonlocal n_passed
            if len(text) > n_passed:
                on_text(text[n_passed:])
                n_passed = len(text)

        batch = self._continue(
            [prompt], decoding, seeds=[(decoding.seed, 0)], on_tokens=lambda text, _n_new: pass_on(text.settled)
        )
        pass_on(batch.completions[0].completion)
        return batch.completions[0]

    def _continue(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        *,
        seeds: Sequence[int | tuple[int, ...]],
        on_tokens: Callable[[CompletionText, int], object],
    ) -> CompletedBatch:
        """Continue a batch; call `on_tokens` with a sequence's text and its number of new tokens as they come."""
        from pipeline.inference.decoding.decode import decode
        from pipeline.inference.decoding.sampling import Sampling

        texts = [CompletionText(prompt.ids, self._tokenizer, stops=decoding.stops) for prompt in prompts]

        def take(sequence: int, token_ids: list[int]) -> bool:
            is_stopped = texts[sequence].extend(token_ids)
            on_tokens(texts[sequence], len(token_ids))
            return is_stopped

        with self._memory.shortage_explained(), self._not_finite_explained(prompts):
            generation = decode(
                self.decoder,
                [prompt.ids for prompt in prompts],
                n_heads_used=decoding.n_heads_used,
                max_gen_len=decoding.max_gen_len or self.decoder.max_seq_len,
                stop_ids={self._tokenizer.eos_id},
                sampling=Sampling(temperature=decoding.temperature, top_p=decoding.top_p, seeds=seeds),
                on_tokens=take,
            )
        figures = zip(generation.tokens_per_forward, generation.tokens_per_s, strict=True)
        completions = [
            Completion(
                prompt=prompt.text,
                completion=text.text,
                token_ids=text.token_ids,
                decoding=DECODINGS[decoding.n_heads_used > 1],
                tokens_per_forward=round(tokens_per_forward, 4),
                tokens_per_s=round(tokens_per_s, 2),
            )
            for prompt, text, (tokens_per_forward, tokens_per_s) in zip(prompts, texts, figures, strict=True)
        ]
        return CompletedBatch(completions=completions, seconds=generation.seconds)

    @contextlib.contextmanager
    def _not_finite_explained(self, prompts: Sequence[Prompt]) -> Iterator[None]:
        """Turn a `NotFiniteError` into a `UserError` that names the prompt and says what helps."""
        from pipeline.inference.decoding.blockwise import NotFiniteError

        try:
            yield
        except NotFiniteError as error:
            whose = f"head {error.draft + 1} computes" if error.draft else "the model computes"
            advice = {
                "fp16": "fp16 overflows easily: try --dtype bf16 or fp32",
                "bf16": "look for nan or infinite weights in the export, or try --dtype fp32",
                "fp32": "look for nan or infinite weights in the export",
            }[self.dtype]
            raise UserError(
                f"{whose} logits that are not finite in {self.dtype}, for prompt {prompts[error.sequence].text[:40]!r} "
                f"after {error.n_tokens} tokens; {advice}"
            ) from error


def choose_precision(device: str | None, dtype: str | None) -> tuple[str, str]:
    """Return the device and the dtype to use; by default CUDA with bf16 if there is a GPU, else the CPU with fp32.

    Raises:
        UserError: the device cannot be used.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    return device, dtype or ("bf16" if device.startswith("cuda") else "fp32")


def choose_heads(n_heads_used: int | None, config: ModelConfig, *, decoding: str) -> int:
    """Return the number of heads to use: the given one, or all heads; autoregressive decoding uses one.

    Raises:
        UserError: the model has fewer heads, or the number contradicts `decoding`.
    """
    if decoding == "autoregressive":
        if n_heads_used not in (None, 1):
            raise UserError(f"--n_heads_used {n_heads_used} needs --decoding self_speculative; autoregressive uses one")
        return 1
    n_heads = config.n_future_tokens
    used = n_heads if n_heads_used is None else n_heads_used
    if not 1 <= used <= n_heads:
        raise UserError(f"--n_heads_used {used} must be 1 to {n_heads}, the number of heads of the model")
    return used
