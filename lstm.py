"""LSTM, bidirectional encoder and attention decoder for review classification.

Experiments 1 to 4 run PyTorch's `nn.LSTM`, as the assignment asks of `Encoder` and `DecoderAttn`, through
`EncoderDecoder.first_step`; `LSTM` is written from scratch, compared with `nn.LSTM`, and part of no experiment.

Shapes: `B` reviews, `T` tokens, `I` input features, `E` embedding size, `H` hidden size; batch first.
A mask is 1 where there is a token and 0 on padding. Depends on torch alone.
"""

import contextlib
import inspect
import math

import torch
from torch import Tensor, nn

States = tuple[Tensor, Tensor]


class EncoderDecoder(nn.Module):
    """Encoder and, unless `encoder_only`, decoder; the first step's output is the pooled representation of a review.

    Args:
        vocabulary_size: entries of the embedding; entry 0 is padding.
        embedding_size: features of an embedded token, `E`.
        hidden_size: features of a state in one direction, `H`.
        dropout: probability of zeroing a feature of the embedding, in training.
        encoder_only: leave the decoder out (`.decoder` is None).
        attn: the decoder's attention, a module over `2H` features as in `DecoderAttn`, or None. Ignored with
            `encoder_only`, because there is no decoder.
    """

    def __init__(
        self,
        vocabulary_size: int = 30522,
        embedding_size: int = 256,
        hidden_size: int = 256,
        dropout: float = 0.0,
        encoder_only: bool = False,
        attn: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder_only = encoder_only
        self.encoder = Encoder(vocabulary_size, embedding_size, hidden_size, dropout)
        self.decoder = None if encoder_only else DecoderAttn(2 * hidden_size, hidden_size, attn)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> tuple[Tensor, States]:
        """Encode, decode and pool a batch of token sequences.

        Args:
            inputs: (B, T), token ids.
            mask: (B, T) of any dtype, 1 = token; read by the decoder's attention only.

        Returns:
            The first step's output, (B, H), or (B, 2H) with `encoder_only`; and the last `(h, c)` of the
            decoder, each (1, B, H), or of the encoder, each (2, B, H).

        Raises:
            ValueError: the inputs are not integers, or the inputs or the mask have another shape.
        """
        _check_tokens(inputs)
        _check_mask(mask, inputs.shape)
        x, (h, c) = self.encoder(inputs)
        if self.decoder is not None:
            x, (h, c) = self.decoder(x, (h[0:1], c[0:1]), mask)
        return x[:, 0], (h, c)

    def first_step(self, inputs: Tensor, mask: Tensor | None = None, padded_length: int | None = None) -> Tensor:
        """The first result of `forward`, without the computations that it does not depend on.

        The first step's output needs all steps of the backward direction, but only the first step of the forward
        direction, of the attention and of the decoder. With a decoder, which starts from the last state of the
        forward direction, that direction runs over all steps. Padding up to `padded_length` need not be in the
        inputs: `_Direction.repeat` computes the states over it once for all rows. An attention with a parameter
        `queries`, such as `MultiHeadedAttention`, computes its first position only; another one computes all.

        Second derivatives are as in `nn.LSTM`, whose function it calls: supported on a CPU, refused by cuDNN.

        Args:
            inputs: (B, T), token ids.
            mask: (B, T) of any dtype, 1 = token.
            padded_length: length to which `forward` would get the inputs padded; None for `T`.

        Returns:
            (B, H), or (B, 2H) with `encoder_only`; equal to `forward(padded inputs, padded mask)[0]`. With
            dropout, equal in distribution.

        Raises:
            ValueError: the inputs are not integers, the inputs or the mask have another shape, the inputs are longer
                than `padded_length`, or they are shorter and an attention without a mask would depend on the padding.
        """
        num_padding = self._count_padding(inputs, mask, padded_length)
        x, forward, zeros, last_to_first = self._read_backward(inputs, num_padding)
        if self.decoder is None:
            outputs, _ = forward.run(x[:, :1], zeros)
            return torch.cat([outputs[:, 0], last_to_first[:, -1]], dim=-1)
        first_to_last, states = forward.run(x, zeros)
        first = self._first_decoder_input(first_to_last, last_to_first, mask)
        states = forward.repeat(self._padding_embedding(), num_padding, states)
        outputs, _ = _Direction(self.decoder.rnn, "l0").run(first, states)
        return outputs[:, 0]

    def all_steps(self, inputs: Tensor, mask: Tensor | None = None, padded_length: int | None = None) -> Tensor:
        """Outputs at the tokens' steps, (B, T, H) or (B, T, 2H), as `forward` computes them on the way.

        Args and errors as in `first_step`.
        """
        num_padding = self._count_padding(inputs, mask, padded_length)
        x, forward, zeros, last_to_first = self._read_backward(inputs, num_padding)
        first_to_last, states = forward.run(x, zeros)
        x = torch.cat([first_to_last, last_to_first.flip(1)], dim=-1)
        if self.decoder is None:
            return x
        states = forward.repeat(self._padding_embedding(), num_padding, states)
        attn = self.decoder.mlp_attn
        outputs, _ = _Direction(self.decoder.rnn, "l0").run(x if attn is None else attn(x, mask), states)
        return outputs

    def packed_steps(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Outputs at the tokens' steps, each review read from its first to its last token as if it were alone.

        Args:
            inputs: (B, T), token ids, padded on the right.
            mask: (B, T) of any dtype, 1 = token; at least one a review.

        Returns:
            (B, T, H), or (B, T, 2H) with `encoder_only`; 0 on padding.

        Raises:
            ValueError: the inputs are not integers, the inputs or the mask have another shape, or a row of the mask is
                not tokens, at least one, and then padding.
        """
        is_token = self._check_packed(inputs, mask)
        if self.decoder is None:
            x, forward, zeros, backward_outputs = self._read_packed_backward(inputs, is_token)
            forward_outputs, _ = forward.run(x, zeros)
            x = torch.cat([forward_outputs, backward_outputs], dim=-1)
            return x.masked_fill(~is_token[..., None], 0)
        lengths, encoder = is_token.sum(dim=1).cpu(), self.encoder

        def pack(x: Tensor) -> nn.utils.rnn.PackedSequence:
            return nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)

        def unpack(x: nn.utils.rnn.PackedSequence) -> Tensor:
            return nn.utils.rnn.pad_packed_sequence(x, batch_first=True, total_length=inputs.shape[1])[0]

        x, (h, c) = encoder.rnn(pack(encoder.dropout(encoder.embedding(inputs))))
        attn = self.decoder.mlp_attn
        x = x if attn is None else pack(attn(unpack(x), mask))
        return unpack(self.decoder.rnn(x, (h[:1], c[:1]))[0])

    def packed_first_step(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """`packed_steps` at the first token, (B, H) or (B, 2H), with its arguments and errors.

        An encoder computes no other step of its forward direction.
        """
        if self.decoder is not None:
            return self.packed_steps(inputs, mask)[:, 0]
        is_token = self._check_packed(inputs, mask)
        x, forward, zeros, backward_outputs = self._read_packed_backward(inputs, is_token)
        outputs, _ = forward.run(x[:, :1], zeros)
        return torch.cat([outputs[:, 0], backward_outputs[:, 0]], dim=-1)

    def _check_packed(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Where there are tokens, (B, T) booleans, after a check of the arguments."""
        _check_tokens(inputs)
        _check_mask(mask, inputs.shape)
        is_token = mask != 0
        # A step that is not a token, and then one that is: padding on the left, or a hole.
        if not (is_token[:, 0] & (is_token[:, 1:] <= is_token[:, :-1]).all(dim=1)).all():
            raise ValueError("each row of the mask must be tokens, at least one, and then padding")
        return is_token

    def _read_packed_backward(self, inputs: Tensor, is_token: Tensor) -> tuple[Tensor, "_Direction", States, Tensor]:
        """As `_read_backward`, with each review reversed within its own length, so that the padding comes last; the
        outputs in the order of the inputs. PyTorch's packed sequences, which do the same, are slow on a CPU.
        """
        x, forward, zeros = self._embed(inputs)
        steps = torch.arange(inputs.shape[1], device=inputs.device)
        from_end = is_token.sum(dim=1, keepdim=True) - 1 - steps
        starts = len(steps) * torch.arange(len(inputs), device=inputs.device)[:, None]
        order = (starts + torch.where(from_end < 0, steps, from_end)).flatten()

        def reverse(x: Tensor) -> Tensor:
            return x.flatten(0, 1).index_select(0, order).view_as(x)

        outputs, _ = _Direction(self.encoder.rnn, "l0_reverse").run(reverse(x), zeros)
        return x, forward, zeros, reverse(outputs)

    def _count_padding(self, inputs: Tensor, mask: Tensor | None, padded_length: int | None) -> int:
        """Number of padding tokens between `T` and `padded_length`, after a check of the arguments."""
        _check_tokens(inputs)
        _check_mask(mask, inputs.shape)
        if padded_length is None or padded_length == inputs.shape[1]:
            return 0
        if padded_length < inputs.shape[1]:
            raise ValueError(f"inputs have {inputs.shape[1]} tokens, more than padded_length={padded_length}")
        if mask is None and self.decoder is not None and self.decoder.mlp_attn is not None:
            raise ValueError("attention without a mask depends on the padding: give a mask, or no padded_length")
        return padded_length - inputs.shape[1]

    def _read_backward(self, inputs: Tensor, num_padding: int) -> tuple[Tensor, "_Direction", States, Tensor]:
        """As `_embed`, and the backward direction's outputs (B, T, H)."""
        x, forward, zeros = self._embed(inputs)
        return x, forward, zeros, self._run_backward_direction(x, zeros, num_padding)

    def _embed(self, inputs: Tensor) -> tuple[Tensor, "_Direction", States]:
        """Embedded inputs (B, T, E), the forward direction and its first states."""
        encoder = self.encoder
        h, c = (state[:1] for state in encoder.initial_states(len(inputs)))
        return encoder.dropout(encoder.embedding(inputs)), _Direction(encoder.rnn, "l0"), (h, c)

    def _run_backward_direction(self, x: Tensor, zeros: States, num_padding: int) -> Tensor:
        """Outputs (B, T, H) of the encoder's backward direction over `x` (B, T, E), the last token's first.

        It reads the padding before the tokens, so its states there are the same in every row: one row is enough.
        """
        direction = _Direction(self.encoder.rnn, "l0_reverse")
        one_row = (zeros[0][:, :1], zeros[1][:, :1])
        h, c = direction.repeat(self._padding_embedding(), num_padding, one_row)
        shape = zeros[0].shape
        outputs, _ = direction.run(x.flip(1), (h.expand(shape).contiguous(), c.expand(shape).contiguous()))
        return outputs

    def _first_decoder_input(self, first_to_last: Tensor, last_to_first: Tensor, mask: Tensor | None) -> Tensor:
        """The decoder's input at its first step, (B, 1, 2H), from the outputs of both directions, each (B, T, H)."""
        attn = self.decoder.mlp_attn
        if attn is None:
            return torch.cat([first_to_last[:, :1], last_to_first[:, -1:]], dim=-1)
        x = torch.cat([first_to_last, last_to_first.flip(1)], dim=-1)
        # The first two parameters are the inputs and the mask, whatever they are called.
        if "queries" in list(inspect.signature(attn.forward).parameters)[2:]:
            return attn(x, mask, queries=1)
        return attn(x, mask)[:, :1]

    def _padding_embedding(self) -> Tensor:
        """Embedding (E,) of the padding token; dropout keeps its zeros, and it has no gradient."""
        return self.encoder.embedding.weight[0].detach()


class Encoder(nn.Module):
    """Bidirectional LSTM over embedded tokens (Schuster & Paliwal 1997), the two directions concatenated.

    Args:
        vocabulary_size: entries of the embedding; entry 0 is padding, embedded as zeros.
        embedding_size: features of an embedded token, `E`.
        hidden_size: features of a state in one direction, `H`.
        dropout: probability of zeroing a feature of the embedding, in training.
    """

    def __init__(
        self,
        vocabulary_size: int = 30522,
        embedding_size: int = 256,
        hidden_size: int = 256,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.vocabulary_size = vocabulary_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.rnn = nn.LSTM(embedding_size, hidden_size, batch_first=True, bidirectional=True)

    def forward(self, inputs: Tensor, hidden_states: States | None = None) -> tuple[Tensor, States]:
        """Encode a batch of token sequences.

        Args:
            inputs: (B, T), token ids.
            hidden_states: the initial `(h, c)`, each (2, B, H), forward direction first; None for zeros.

        Returns:
            The outputs of every step, (B, T, 2H), and the last `(h, c)`, each (2, B, H).

        Raises:
            ValueError: the inputs are not integers, or the inputs or a state have another shape.
        """
        _check_tokens(inputs)
        if hidden_states is None:
            hidden_states = self.initial_states(inputs.shape[0])
        _check_states(hidden_states, (2, inputs.shape[0], self.hidden_size))
        return self.rnn(self.dropout(self.embedding(inputs)), hidden_states)

    def initial_states(self, batch_size: int, device: torch.device | str | None = None) -> States:
        """Zeros to start from: `(h, c)`, each (2, batch_size, H), on `device` or else the weights' own."""
        weight = self.embedding.weight
        shape = (2, batch_size, self.hidden_size)
        h, c = (torch.zeros(shape, dtype=weight.dtype, device=device or weight.device) for _ in range(2))
        return h, c


class DecoderAttn(nn.Module):
    """LSTM over an encoder's outputs, optionally after self-attention over them.

    Soft attention as in Bahdanau et al. (2015, section 3.1): the decoder's input at every step is a weighted sum of
    the encoder's outputs. Departure from the paper: the weights depend on the encoder's outputs only, not on the
    decoder's state, so all steps can be computed at once.

    Args:
        input_size: features of an encoder output, `2H` of the encoder.
        hidden_size: features of the decoder's state, `H`.
        attn: a module called as `attn(inputs, mask)`, or None. Its output has the shape of `inputs`, and does not
            depend on padding. Experiment 4 uses `MultiHeadedAttention` with one head.
    """

    def __init__(self, input_size: int = 512, hidden_size: int = 256, attn: nn.Module | None = None):
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.rnn = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.mlp_attn = attn

    def forward(self, inputs: Tensor, hidden_states: States, mask: Tensor | None = None) -> tuple[Tensor, States]:
        """Decode a batch of encoder outputs.

        Args:
            inputs: (B, T, 2H), the encoder's outputs.
            hidden_states: the initial `(h, c)`, each (1, B, H).
            mask: (B, T) of any dtype, 1 = token; read by the attention only.

        Returns:
            The outputs of every step, (B, T, H), and the last `(h, c)`, each (1, B, H).

        Raises:
            ValueError: the inputs, a state or the mask have another shape.
        """
        if inputs.ndim != 3 or inputs.shape[2] != self.input_size:
            raise ValueError(f"inputs must be (B, T, {self.input_size}), got {tuple(inputs.shape)}")
        _check_states(hidden_states, (1, inputs.shape[0], self.hidden_size))
        _check_mask(mask, inputs.shape[:2])
        x = inputs if self.mlp_attn is None else self.mlp_attn(inputs, mask)
        return self.rnn(x, hidden_states)


class LSTM(nn.Module):
    """One-layer, one-direction LSTM from primitive tensor operations.

        i_t = sigmoid(x_t W_ii^T + b_ii + h_{t-1} W_hi^T + b_hi)
        f_t = sigmoid(x_t W_if^T + b_if + h_{t-1} W_hf^T + b_hf)
        g_t = tanh   (x_t W_ig^T + b_ig + h_{t-1} W_hg^T + b_hg)
        o_t = sigmoid(x_t W_io^T + b_io + h_{t-1} W_ho^T + b_ho)
        c_t = f_t * c_{t-1} + i_t * g_t
        h_t = o_t * tanh(c_t)

    Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000). As in `nn.LSTM`, and unlike
    the papers, each gate has two biases and there are no peepholes.

    Args:
        input_size: features of a step, `I`.
        hidden_size: features of a state, `H`.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        bound = 1 / math.sqrt(hidden_size)
        for gate in "ifgo":
            for name, shape in (
                (f"w_i{gate}", (hidden_size, input_size)),
                (f"w_h{gate}", (hidden_size, hidden_size)),
                (f"b_i{gate}", (hidden_size,)),
                (f"b_h{gate}", (hidden_size,)),
            ):
                self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def forward_reference(self, inputs: Tensor, hidden_states: States | None = None) -> tuple[Tensor, States]:
        """The definition of `forward`, with its arguments and results: `cell` at each step, and autograd."""
        h, c = (state[0] for state in self._check(inputs, hidden_states))
        outputs = []
        for x in inputs.unbind(dim=1):
            h, c = self.cell(x, h, c)
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h[None], c[None])

    def cell(self, x: Tensor, h: Tensor, c: Tensor) -> States:
        """One step of the equations.

        Args:
            x: (B, I), the step's input.
            h: (B, H), the hidden state before it.
            c: (B, H), the cell state before it.

        Returns:
            The hidden and the cell state after it, each (B, H).
        """
        i = torch.sigmoid(x @ self.w_ii.T + self.b_ii + h @ self.w_hi.T + self.b_hi)
        f = torch.sigmoid(x @ self.w_if.T + self.b_if + h @ self.w_hf.T + self.b_hf)
        g = torch.tanh(x @ self.w_ig.T + self.b_ig + h @ self.w_hg.T + self.b_hg)
        o = torch.sigmoid(x @ self.w_io.T + self.b_io + h @ self.w_ho.T + self.b_ho)
        c = f * c + i * g
        return o * torch.tanh(c), c

    def forward(self, inputs: Tensor, hidden_states: States | None = None) -> tuple[Tensor, States]:
        """Run the LSTM over a sequence: equal to `forward_reference`, computed faster by `_LSTMSequence`.

        Args:
            inputs: (B, T, I), `T` >= 1, of the weights' dtype; under autocast also of half precision.
            hidden_states: the initial `(h, c)`, each (1, B, H); None for zeros.

        Returns:
            The hidden state of every step, (B, T, H), and the last `(h, c)`, each (1, B, H).

        Raises:
            ValueError: the inputs or a state have another shape or dtype.
        """
        h, c = (state[0] for state in self._check(inputs, hidden_states))
        if _is_transformed():
            return self.forward_reference(inputs, hidden_states)
        w_i, w_h, b_i, b_h = (
            torch.cat([getattr(self, part + gate) for gate in "oifg"]) for part in ("w_i", "w_h", "b_i", "b_h")
        )
        with torch.autocast(inputs.device.type, enabled=False):
            outputs, h, c = _LSTMSequence.apply(*(x.to(w_i.dtype) for x in (inputs, h, c)), w_i, w_h, b_i + b_h)
        return outputs, (h[None], c[None])

    def _check(self, inputs: Tensor, hidden_states: States | None) -> States:
        """Check the arguments of `forward`, and return the initial states."""
        if inputs.ndim != 3 or inputs.shape[1] == 0 or inputs.shape[2] != self.input_size:
            raise ValueError(f"inputs must be (B, T >= 1, {self.input_size}), got {tuple(inputs.shape)}")
        shape = (1, inputs.shape[0], self.hidden_size)
        if hidden_states is None:
            zeros = self.w_hi.new_zeros(shape)
            hidden_states = (zeros, zeros)
        _check_states(hidden_states, shape)
        for name, tensor in zip(("inputs", "h", "c"), (inputs, *hidden_states), strict=True):
            _check_dtype(name, tensor, self.w_hi)
        return hidden_states


class _Direction:
    """One direction of a one-layer `nn.LSTM`, which shares the weights of that module.

    Args:
        rnn: an LSTM with `batch_first=True` and biases.
        suffix: `"l0"` for the forward direction, `"l0_reverse"` for the backward direction.
    """

    def __init__(self, rnn: nn.LSTM, suffix: str):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self.weights = [getattr(rnn, f"{name}_{suffix}") for name in names]

    def run(self, inputs: Tensor, states: States) -> tuple[Tensor, States]:
        """Outputs (B, T, H) and last `(h, c)` over inputs (B, T, I), read from first to last; states are (1, B, H)."""
        return self._lstm(inputs, states, self.weights)

    def repeat(self, x: Tensor, num_steps: int, states: States) -> States:
        """`(h, c)`, each (1, B, H), after `num_steps` steps with the same input `x` (I,).

        The product of `x` and the weights is computed once, and enters each step as its bias.
        """
        if num_steps == 0:
            return states
        weight_ih, weight_hh, bias_ih, bias_hh = self.weights
        with torch.autocast(x.device.type, enabled=False):
            bias = torch.addmv(bias_ih, weight_ih, x)
        inputs = x.new_zeros(states[0].shape[1], num_steps, 1)
        weights = [weight_ih.new_zeros(len(weight_ih), 1), weight_hh, bias, bias_hh]
        return self._lstm(inputs, states, weights)[1]

    def _lstm(self, inputs: Tensor, states: States, weights: list[Tensor]) -> tuple[Tensor, States]:
        """The function that `nn.LSTM.forward` calls."""
        context = contextlib.nullcontext()
        if inputs.is_cuda:
            inputs, states, weights = _prepare_for_cudnn(inputs, states, weights)
            context = torch.autocast("cuda", enabled=False)
        with context:
            outputs, h, c = torch.lstm(
                inputs,
                states,
                weights,
                True,  # has_biases
                1,  # num_layers
                0.0,  # dropout between layers
                torch.is_grad_enabled(),  # train: save the activations for the backward pass
                False,  # bidirectional
                True,  # batch_first
            )
        return outputs, (h, c)


def _prepare_for_cudnn(inputs: Tensor, states: States, weights: list[Tensor]) -> tuple[Tensor, States, list[Tensor]]:
    """The arguments in one dtype, the weights next to each other in memory, where cuDNN reads them without a copy.

    The dtype is fp16 under autocast to fp16, else that of the weights. PyTorch's own autocast would run an LSTM in fp16
    under bf16, too, where no gradient scaler keeps small gradients from becoming 0.
    """
    is_half = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.float16
    dtype = torch.float16 if is_half else weights[0].dtype
    flat = torch.cat([weight.flatten() for weight in weights]).to(dtype)
    parts = flat.split([weight.numel() for weight in weights])
    h, c = (state.to(dtype) for state in states)
    return inputs.to(dtype), (h, c), [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]


class _LSTMSequence(torch.autograd.Function):
    """`LSTM.forward_reference` with fewer and larger matrix products, and a hand-written gradient.

    The four gates lie next to each other in the order o, i, f, g. One product computes the inputs' part of all gates
    at all steps, one product a step adds the part of the hidden states, and one product after the last step gives
    the gradient of each weight. Write `d z` for the derivative of the loss with respect to `z`, and `s' = s (1 - s)`
    for the derivative of a sigmoid with output `s`. The backward pass is, for `t = T, ..., 1`,

        d c_t  += d h_t * o * (1 - tanh(c_t)^2)
        d gates = [d h_t * tanh(c_t) * o', d c_t * g * i', d c_t * c_{t-1} * f', d c_t * i * (1 - g^2)]
        d h_{t-1} = d gates W_h,    d c_{t-1} = d c_t * f

    (Gers et al. 2000, without truncation). The factors of `d h` and `d c` are computed for all steps at once.
    Second derivatives (`create_graph=True`) are those of `forward_reference`.
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, h: Tensor, c: Tensor, w_i: Tensor, w_h: Tensor, bias: Tensor) -> tuple:
        """inputs (B, T, I), states (B, H), weights (4H, I) and (4H, H), bias (4H) -> (B, T, H), (B, H), (B, H)."""
        (batch, steps, _), size = inputs.shape, h.shape[1]
        x = inputs.transpose(0, 1).flatten(0, 1)  # (T B, I)
        gates = torch.addmm(bias, x, w_i.T).view(steps, batch, 4 * size)
        states = gates.new_empty(2, steps + 1, batch, size)
        hidden, cells = states
        tanh_cells = gates.new_empty(steps, batch, size)
        hidden[0], cells[0] = h, c
        sigmoids, o, i, f, g = _split_gates(gates)
        for t in range(steps):
            gates[t].addmm_(hidden[t], w_h.T)
            sigmoids[t].sigmoid_()
            g[t].tanh_()
            torch.mul(f[t], cells[t], out=cells[t + 1]).addcmul_(i[t], g[t])
            torch.tanh(cells[t + 1], out=tanh_cells[t])
            torch.mul(o[t], tanh_cells[t], out=hidden[t + 1])
        ctx.save_for_backward(inputs, h, c, w_i, w_h, bias, hidden, gates, cells, tanh_cells)
        return hidden[1:].transpose(0, 1).clone(), hidden[-1].clone(), cells[-1].clone()

    @staticmethod
    def backward(ctx, d_outputs: Tensor, d_h: Tensor, d_c: Tensor) -> tuple:
        """Gradients of the six inputs of `forward`, from those of its three outputs."""
        *primals, hidden, gates, cells, tanh_cells = ctx.saved_tensors
        with torch.autocast(d_outputs.device.type, enabled=False):
            # With create_graph=True the gradients are differentiated again, which in-place operations don't allow.
            if torch.is_grad_enabled():
                _, pullback = torch.func.vjp(_LSTMSequence.forward_reference, *primals)
                return pullback((d_outputs, d_h, d_c))
            inputs, _, _, w_i, w_h, _ = primals
            d_gates, d_h, d_c = _backward_through_time((gates, cells, tanh_cells), w_h, d_outputs, d_h, d_c)
            d_gates = d_gates.flatten(0, 1)  # (T B, 4H)
            d_inputs = (d_gates @ w_i).view(*inputs.transpose(0, 1).shape).transpose(0, 1)
            d_w_i = d_gates.T @ inputs.transpose(0, 1).flatten(0, 1)
            d_w_h = d_gates.T @ hidden[:-1].flatten(0, 1)
            return d_inputs, d_h, d_c, d_w_i, d_w_h, d_gates.sum(dim=0)

    @staticmethod
    def forward_reference(inputs: Tensor, h: Tensor, c: Tensor, w_i: Tensor, w_h: Tensor, bias: Tensor) -> tuple:
        """The definition of `forward`, which autograd differentiates any number of times."""
        outputs = []
        for x in inputs.unbind(dim=1):
            o, i, f, g = (x @ w_i.T + h @ w_h.T + bias).chunk(4, dim=-1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, dim=1), h, c


def _backward_through_time(
    activations: tuple[Tensor, Tensor, Tensor], w_h: Tensor, d_outputs: Tensor, d_h: Tensor, d_c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the gates (T, B, 4H) and of the initial states (B, H), from those of the outputs and last states.

    `activations` are the gates (T, B, 4H), the cell states (T + 1, B, H) and the tanh of the last T (T, B, H).
    """
    steps, _, size = activations[-1].shape
    d_gates, d_cell_by_hidden = _local_derivatives(*activations)
    _, d_o, _, _, _ = _split_gates(d_gates)
    _, _, _, f, _ = _split_gates(activations[0])
    d_by_cell = d_gates[..., size:].unflatten(-1, (3, size))  # i, f, g: the factors of d c
    d_outputs = d_outputs.transpose(0, 1).contiguous()
    d_h, d_c = d_h.clone(), d_c.clone()
    for t in range(steps - 1, -1, -1):
        d_h += d_outputs[t]
        d_c.addcmul_(d_h, d_cell_by_hidden[t])
        d_o[t].mul_(d_h)
        d_by_cell[t].mul_(d_c[:, None])
        d_c.mul_(f[t])
        torch.mm(d_gates[t], w_h, out=d_h)
    return d_gates, d_h, d_c


def _local_derivatives(gates: Tensor, cells: Tensor, tanh_cells: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of `d h` and `d c` at all steps: those of the gates (T, B, 4H), and `d c / d h` (T, B, H)."""
    sigmoids, o, i, _, g = _split_gates(gates)
    d_gates = torch.empty_like(gates)
    d_sigmoids, d_o, d_i, d_f, d_g = _split_gates(d_gates)
    torch.addcmul(sigmoids, sigmoids, sigmoids, value=-1, out=d_sigmoids)
    d_o.mul_(tanh_cells)
    d_i.mul_(g)
    d_f.mul_(cells[:-1])
    torch.addcmul(i, i * g, g, value=-1, out=d_g)
    return d_gates, torch.addcmul(o, o * tanh_cells, tanh_cells, value=-1)


def _split_gates(gates: Tensor) -> tuple[Tensor, ...]:
    """Views of gates (T, B, 4H): the three sigmoids together, then o, i, f and g."""
    size = gates.shape[-1] // 4
    return gates[..., : 3 * size], *gates.split(size, dim=-1)


def _is_transformed() -> bool:
    """Whether torch.compile or torch.func is active; both need the reference, which has no in-place operation."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _check_tokens(inputs: Tensor) -> None:
    """Refuse (`ValueError`) anything but token ids of shape (B, T) with at least one token."""
    if inputs.ndim != 2 or inputs.shape[1] == 0:
        raise ValueError(f"inputs must be token ids of shape (B, T >= 1), got {tuple(inputs.shape)}")
    if inputs.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"inputs must be token ids, int64 or int32, got {inputs.dtype}")


def _check_mask(mask: Tensor | None, shape: torch.Size) -> None:
    """Refuse (`ValueError`) a mask whose shape is not `shape`, (B, T)."""
    if mask is not None and mask.shape != shape:
        raise ValueError(f"mask must be (B, T) = {tuple(shape)}, got {tuple(mask.shape)}")


def _check_states(states: States, shape: tuple[int, int, int]) -> None:
    """Refuse (`ValueError`) a pair `(h, c)` whose shapes are not `shape`."""
    for name, state in zip("hc", states, strict=True):
        if state.shape != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(state.shape)}")


def _check_dtype(name: str, tensor: Tensor, weight: Tensor) -> None:
    """Refuse (`ValueError`) another dtype than that of the weights; under autocast, half and single precision pass."""
    if tensor.dtype == weight.dtype:
        return
    mixed = tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if not (mixed and torch.is_autocast_enabled(weight.device.type)):
        raise ValueError(f"{name} must have the dtype of the weights, {weight.dtype}, got {tensor.dtype}")
