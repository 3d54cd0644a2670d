"""Open pplx-embed checkpoints with Hugging Face transformers, without running code from the repository.

from pplx_edge.integrations import transformers
transformers.register()
model = AutoModel.from_pretrained("perplexity-ai/pplx-embed-v1-0.6b")  # last_hidden_state, bidirectional
"""

from transformers import AutoConfig, AutoModel, Qwen3Config, Qwen3Model, __version__

from pplx_edge.errors import MissingExtra
from pplx_edge.spec import PPLX_MODEL_TYPE

_OLDEST = (5, 2)  # earlier versions ignore `is_causal` in the config and run these models causally, without a word


class PPLXQwen3Config(Qwen3Config):
    """The configuration of the pplx-embed models: Qwen3 that reads in both directions."""

    model_type = PPLX_MODEL_TYPE
    is_causal: bool = False


class PPLXQwen3Model(Qwen3Model):
    """The encoder of the pplx-embed models. Returns token states; the vector of a text is their mean."""

    config_class = PPLXQwen3Config

    def __init__(self, config: PPLXQwen3Config):
        config.is_causal = False
        super().__init__(config)


def register() -> None:
    """Make `AutoConfig` and `AutoModel` open checkpoints of type `bidirectional_pplx_qwen3`. May be called repeatedly.

    Raises MissingExtra if transformers is older than 5.2, which would run these models causally.
    """
    if tuple(int(part) for part in __version__.split(".")[:2]) < _OLDEST:
        raise MissingExtra("transformers", "optimum", f"{__version__} ignores is_causal; 5.2 or later is needed")
    AutoConfig.register(PPLX_MODEL_TYPE, PPLXQwen3Config, exist_ok=True)
    AutoModel.register(PPLXQwen3Config, PPLXQwen3Model, exist_ok=True)
