"""Requests and replies of the API. The OpenAPI document and the checks of requests both come from these classes."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

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
TokenId = Annotated[int, Field(ge=0, le=_MAX_ID, strict=True)]
Text = Annotated[str, Field(strict=True)]


_TEXT, _TEXTS, _IDS, _MANY_IDS = "text", "texts", "ids", "many_ids"


def _kind_of_input(value: object) -> str | None:
    """Return which member of `Inputs` a value should be, by its first item."""
    if isinstance(value, str):
        return _TEXT
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    return _IDS if isinstance(first, int) else _MANY_IDS if isinstance(first, list) else _TEXTS


Inputs = Annotated[
    Annotated[Text, Tag(_TEXT)]
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS), Tag(_TEXTS)]
    | Annotated[list[TokenId], Field(min_length=1), Tag(_IDS)]
    | Annotated[
        list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_INPUTS), Tag(_MANY_IDS)
    ],
    Discriminator(
        _kind_of_input,
        custom_error_type="input_kind",
        custom_error_message="must be a string, a list of strings, a list of token ids or a list of those",
    ),
]


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

    input: Inputs = Field(description="A string, a list of strings, the token ids of one input, or a list of those.")
    encoding_format: EncodingFormat | None = Field(
        None,
        description="float (the default), base64 (float32, little-endian), base64_int8 (the default for Perplexity's "
        "client) or base64_binary (bits, least significant first).",
    )
    user: str | None = Field(None, description="Ignored.")

    def require_hosted(self, encoding_format: str) -> None:
        """Raise WebError 422 if the inputs break the rules of the hosted API, which its formats come with."""
        texts: list[Any] = [self.input] if isinstance(self.input, str) else list(self.input)
        if len(texts) > MAX_HOSTED_INPUTS and not isinstance(texts[0], int):
            message = f"input: at most {MAX_HOSTED_INPUTS} inputs are allowed with {encoding_format}"
            raise WebError(422, message, code="too_many_inputs", where=("input",))
        if "" in texts:
            message = f"input {texts.index('')} must not be empty with {encoding_format}"
            raise WebError(422, message, code="empty_input", where=("input", texts.index("")))


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
    """Return the request in a body.

    Raises WebError: 400 for what is not JSON and for an unknown encoding format, and 422 for everything else.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = tuple(each for each in first["loc"] if each not in (_TEXT, _TEXTS, _IDS, _MANY_IDS))
    named = f"{'.'.join(map(str, where))}: " if where else ""
    status = 400 if first["type"] == "json_invalid" or where == ("encoding_format",) else 422
    raise WebError(status, named + first["msg"].removeprefix("Value error, "), code=first["type"], where=where)
