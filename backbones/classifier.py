"""The review classifier as a model of `transformers`: its settings, and the network that they describe.

Needs nothing but torch, transformers and the layers, so that it also runs from copies beside a saved model.
"""

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from backbones.dropout import use_fast_dropout
from backbones.encoders import BertBackbone, EmbeddingBackbone, LSTMBackbone, TransformerBackbone
from lstm import EncoderDecoder
from transformer_solution import MultiHeadedAttention, Transformer


class ReviewConfig(PretrainedConfig):
    """What a saved classifier's `config.json` holds.

    Args:
        model: the section `model` of a run's settings, whole; None only where the backbone is given.
        vocabulary_size: entries of the embedding.
        max_tokens: kept of a review.
        encoder: the settings of a pretrained BERT encoder, as of `BertConfig`; None for the other backbones.
    """

    model_type = "review_classifier"

    def __init__(
        self,
        model: dict | None = None,
        vocabulary_size: int = 30522,
        max_tokens: int = 256,
        encoder: dict | None = None,
        **kwargs,
    ):
        self.model = model or {}
        self.vocabulary_size, self.max_tokens, self.encoder = vocabulary_size, max_tokens, encoder
        labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
        super().__init__(**labels | kwargs)


class ReviewClassifier(PreTrainedModel):
    """A linear layer over a backbone's pooled representation of a review; class 0 is negative, 1 positive.

    Args:
        config: of the classifier.
        backbone: called as `backbone(input_ids, attention_mask)`, with an `output_size`; None for the one that the
            settings describe, with random weights.
    """

    config_class = ReviewConfig
    main_input_name = "input_ids"

    def __init__(self, config: ReviewConfig, backbone: nn.Module | None = None):
        super().__init__(config)
        self.backbone = _build_backbone(config) if backbone is None else backbone
        self.classifier = nn.Linear(self.backbone.output_size, 2)
        use_fast_dropout(self)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the layers draw their weights as they are made."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        hidden_states: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple:
        """Classify a batch.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 1 = token; None where every entry but 0 is one.
            labels: (B,) 0/1.
            hidden_states: of a `BertBackbone`, the cached outputs of its frozen layers, (B, T, D).
            token_type_ids: not read: a review is one segment.
            return_dict: False for a tuple of what there is: loss, logits.

        Returns:
            `logits` (B, 2) and `loss`, the mean cross-entropy over the batch in nats (None without labels).
        """
        mask = (input_ids != 0).long() if attention_mask is None else attention_mask
        cached = {} if hidden_states is None else {"hidden_states": hidden_states}
        logits = self.classifier(self.backbone(input_ids, mask, **cached)).float()
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of the tokens, for tools that need its gradients."""
        paths = ("model.encoder.embedding", "model.embeddings.word_embeddings", "model.embedding", "model")
        modules = dict(self.backbone.named_modules())
        return next(modules[path] for path in paths if isinstance(modules.get(path), nn.Embedding))

    def start_epoch(self, epoch: int) -> None:
        """Set which parameters are trained in `epoch`, counted from 1: all, but in a pretrained backbone."""
        if isinstance(self.backbone, BertBackbone):
            self.backbone.start_epoch(epoch)


def _build_backbone(config: ReviewConfig) -> nn.Module:
    """The backbone of the settings, with random weights."""
    settings = SimpleNamespace(**config.model)
    if settings.backbone == "bert":
        encoder = BertModel(BertConfig.from_dict(config.encoder), add_pooling_layer=False)
        return BertBackbone(encoder, settings.unfreeze_epoch, settings.unfreeze_layers, settings.pooling)
    if settings.backbone == "transformer":
        model = Transformer(
            config.vocabulary_size,
            embed_dim=settings.embedding_size,
            hidden_dim=settings.hidden_size,
            num_heads=settings.num_heads,
            num_layers=settings.num_layers,
            block=settings.block,
            dropout=settings.dropout,
            attn_implementation=settings.attn_implementation,
        )
        return TransformerBackbone(model, settings.pooling)
    if settings.backbone == "embedding":
        sizes = config.vocabulary_size, settings.embedding_size
        return EmbeddingBackbone(*sizes, settings.dropout, settings.pooling)
    return _build_lstm(config, settings)


def _build_lstm(config: ReviewConfig, settings: SimpleNamespace) -> LSTMBackbone:
    attention = MultiHeadedAttention(2 * settings.hidden_size, num_heads=1) if settings.attention else None
    model = EncoderDecoder(
        config.vocabulary_size,
        embedding_size=settings.embedding_size,
        hidden_size=settings.hidden_size,
        dropout=settings.dropout,
        encoder_only=not settings.decoder,
        attn=attention,
    )
    with torch.no_grad():
        for rnn in (model.encoder.rnn, *([model.decoder.rnn] if model.decoder else [])):
            for name, bias in rnn.named_parameters():
                if name.startswith("bias_ih"):
                    # The gates' order is input, forget, cell, output.
                    bias[rnn.hidden_size : 2 * rnn.hidden_size] += settings.forget_bias
    padded_length = config.max_tokens if settings.padding == "right" else None
    return LSTMBackbone(model, padded_length, settings.pooling)
