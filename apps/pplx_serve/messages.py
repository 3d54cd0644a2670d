"""Requests and replies of the API. The OpenAPI document and the checks of requests both come from these classes."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pplx_kit.web_errors import WebError

EncodingFormat = Literal["float", "base64", "base64_int8", "base64_binary"]
HOSTED_FORMATS = ("base64_int8", "base64_binary")

MAX_INPUTS = 2048
MAX_HOSTED_INPUTS = 512
MAX_DOCUMENTS = 512
MAX_CHUNKS = 16_000
MAX_TOKENS = 300_000
MAX_HOSTED_TOKENS = 120_000

_MAX_ID = (1 << 31) - 1
_SHOWN_PROBLEMS = 10
TokenId = Annotated[int, Field(ge=0, le=_MAX_ID, strict=True)]
Text = Annotated[str, Field(strict=True)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: Text = Field(description="Name of a model of this server; GET /v1/models lists them.")
    dimensions: int | None = Field(
        None,
        strict=True,
        ge=1,
        description="Keep only the first components of each vector, from 128 to the size of the model.",
    )
    truncate: bool = Field(
        False, strict=True, description="Cut inputs that are too long for the model instead of refusing them."
    )
    normalize: bool = Field(
        True, strict=True, description="Scale vectors of the formats float and base64 to unit length."
    )


class EmbeddingsRequest(_Request):
    """Inputs to embed, each on its own."""

    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_INPUTS)]
    ) = Field(description="A string, a list of strings, the token ids of one input, or a list of those.")
    encoding_format: EncodingFormat | None = Field(
        None,
        description="float (the default), base64 (float32, little-endian), base64_int8 (the default for Perplexity's "
        "client) or base64_binary (bits, least significant first).",
    )
    user: str | None = Field(None, description="Ignored.")

    @model_validator(mode="after")
    def _hosted_rules(self) -> "EmbeddingsRequest":
        if self.encoding_format in HOSTED_FORMATS:
            texts = [self.input] if isinstance(self.input, str) else self.input
            if len(texts) > MAX_HOSTED_INPUTS and not isinstance(texts[0], int):
                raise ValueError(f"at most {MAX_HOSTED_INPUTS} inputs are allowed with {self.encoding_format}")
            if any(text == "" for text in texts):
                raise ValueError(f"inputs must not be empty with {self.encoding_format}")
        return self


class ContextualizedEmbeddingsRequest(_Request):
    """Documents as lists of chunks. Each chunk is embedded in the context of its document."""

    input: Annotated[
        list[Annotated[list[Text], Field(min_length=1, max_length=MAX_CHUNKS)]],
        Field(min_length=1, max_length=MAX_DOCUMENTS),
    ] = Field(description="Documents, each a list of chunks in order.")
    encoding_format: EncodingFormat = Field("base64_int8", description="As in /v1/embeddings.")

    @model_validator(mode="after")
    def _few_chunks(self) -> "ContextualizedEmbeddingsRequest":
        n_chunks = sum(map(len, self.input))
        if n_chunks > MAX_CHUNKS:
            raise ValueError(f"at most {MAX_CHUNKS:,} chunks are allowed in all documents, got {n_chunks:,}")
        return self


class RerankRequest(BaseModel):
    """A query and the documents to sort by relevance."""

    model: Text
    query: Text
    documents: list[Text]
    top_n: int | None = None


class Cost(BaseModel):
    """What the request cost, which is nothing."""

    currency: Literal["USD"] = "USD"
    input_cost: float = 0.0
    total_cost: float = 0.0


class Usage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int
    cost: Cost


class Embedding(BaseModel):
    """The vector of an input: numbers, or their bytes in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsReply(BaseModel):
    """Vectors in the order of the inputs. `truncated_inputs` counts those that were cut."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage
    truncated_inputs: int


class DocumentEmbeddings(BaseModel):
    """The vectors of the chunks of a document, in order."""

    object: Literal["list"]
    index: int
    data: list[Embedding]


class ContextualizedEmbeddingsReply(BaseModel):
    """Vectors by document. `truncated_inputs` counts the documents that were cut."""

    object: Literal["list"]
    data: list[DocumentEmbeddings]
    model: str
    usage: Usage
    truncated_inputs: int


class ModelEntry(BaseModel):
    """A model of this server. `key` identifies its files, and `last_used` is in seconds since 1970."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    aliases: list[str]
    loaded: bool
    bytes: int
    last_used: float | None
    key: str | None
    dimensions: int | None
    max_tokens: int | None


class ModelsReply(BaseModel):
    """The models of this server."""

    object: Literal["list"]
    data: list[ModelEntry]


class State(BaseModel):
    """The state of the server or of a model."""

    status: str


class ErrorBody(BaseModel):
    """What was wrong, as OpenAI's clients read it."""

    model_config = ConfigDict(extra="allow")
    message: str
    type: str
    param: str | None
    code: str


class ErrorDetail(BaseModel):
    """What was wrong, as Perplexity's clients read it."""

    loc: list[str | int]
    msg: str
    type: str


class ErrorReply(BaseModel):
    """A refusal."""

    error: ErrorBody
    detail: list[ErrorDetail]


_Model = TypeVar("_Model", bound=BaseModel)


def parse(kind: type[_Model], body: bytes) -> _Model:
    """Return the request in a body. Raises WebError: 400 for what is not JSON or an unknown format, 422 for the rest."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
    raise _refusal(problems)


def _refusal(problems: list[Any]) -> WebError:
    first = min(problems, key=lambda each: (each["type"] != "json_invalid", each["loc"][:1] != ("encoding_format",)))
    message = first["msg"].removeprefix("Value error, ")
    # A union reports each of its members; the deepest place is the one that the caller meant.
    of_input = [each for each in problems if each["loc"][:1] == ("input",)]
    if first in of_input and len(of_input) > 1:
        first = max(of_input, key=lambda each: len(_place(each["loc"])))
        message = "input must be a string, a list of strings, a list of token ids or a list of those"
        if first["type"] in ("too_long", "too_short", "greater_than_equal", "less_than_equal"):
            message = first["msg"]
    where = _place(first["loc"])
    bad_json = first["type"] == "json_invalid"
    status = 400 if bad_json or where[:1] == ("encoding_format",) else 422
    named = f"{'.'.join(map(str, where))}: " if where else ""
    more = {"problems": len(problems)} if len(problems) > _SHOWN_PROBLEMS else None
    return WebError(status, named + message, code=first["type"], where=where, more=more)


def _place(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Return a place in a request without the names that pydantic gives to the members of a union."""
    return tuple(each for each in location if isinstance(each, int) or each.isidentifier())
