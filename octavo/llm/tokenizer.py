"""The tokenizer that `LLM.get_tokenizer()` hands out, with the names that scripts know from transformers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from octavo.errors import BadRequest
from octavo.types.job import ChatOptions

if TYPE_CHECKING:
    from octavo.pipeline.prepare import Preparer
    from octavo.pipeline.tokenizer import Tokenizer


class TokenizerView:
    """Encode, decode and render with the model's tokenizer and chat template."""

    def __init__(self, preparer: Preparer) -> None:
        """Raises BadRequest when the engine runs without a tokenizer."""
        if preparer.tokenizer is None:
            raise BadRequest("There is no tokenizer (skip_tokenizer_init).")
        self._preparer = preparer
        self.inner: Tokenizer = preparer.tokenizer
        self.vocab_size = self.inner.vocab_size
        self.eos_token_id, self.eos_token = self.inner.eos_id, self.inner.eos_token
        self.bos_token_id, self.bos_token = self.inner.bos_id, self.inner.bos_token
        self.pad_token_id, self.unk_token_id = self.inner.pad_id, self.inner.unk_id
        self.all_special_ids = sorted(self.inner.special_ids)

    @property
    def chat_template(self) -> str | None:
        """The template's text; None for a model that has none."""
        template = self._preparer.template
        return None if template is None else template.source

    def __len__(self) -> int:
        return self.vocab_size

    def __call__(
        self, text: str | Sequence[str], add_special_tokens: bool = True, **_: Any
    ) -> dict[str, Any]:
        """``{"input_ids", "attention_mask"}`` of one text or a list of texts."""
        if isinstance(text, str):
            ids = self.encode(text, add_special_tokens)
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        many = [self.encode(one, add_special_tokens) for one in text]
        return {"input_ids": many, "attention_mask": [[1] * len(ids) for ids in many]}

    def encode(self, text: str, add_special_tokens: bool = True, **_: Any) -> list[int]:
        """Token ids of `text`."""
        return self.inner.encode(text, add_special_tokens)

    def decode(self, token_ids: int | Iterable[int], skip_special_tokens: bool = False, **_: Any) -> str:
        """Text of one id or of several."""
        ids = [token_ids] if isinstance(token_ids, int) else [int(i) for i in token_ids]
        return self.inner.decode(ids, skip_special_tokens)

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str | None]:
        """The vocabulary's own spellings."""
        return self.inner.convert_ids_to_tokens(ids)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int | None] | None:
        """The ids of vocabulary spellings."""
        if isinstance(tokens, str):
            return self.inner.token_id(tokens)
        return [self.inner.token_id(token) for token in tokens]

    def apply_chat_template(
        self,
        conversation: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        **kwargs: Any,
    ) -> str | list[int]:
        """The rendered conversation as text (`tokenize=False`) or ids; other keywords go to the template."""
        options = ChatOptions(
            template=chat_template,
            tools=tuple(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            kwargs={k: v for k, v in kwargs.items() if k not in _NOT_FOR_TEMPLATES},
        )
        text = self._preparer.render([dict(message) for message in conversation], options)
        return self.encode(text, add_special_tokens=False) if tokenize else text


_NOT_FOR_TEMPLATES = frozenset(
    {"return_tensors", "return_dict", "padding", "truncation", "max_length", "documents", "tokenizer_kwargs"}
)
