"""LSTM, bidirectional encoder and attention decoder for review classification.

Shapes: `B` reviews, `T` tokens, `I` input features, `E` embedding size, `H` hidden size; batch first.
A mask is 1 where there is a token and 0 on padding. Depends on torch alone.
"""

import math

import torch
from torch import Tensor, nn

States = tuple[Tensor, Tensor]


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

    def forward(self, inputs: Tensor, hidden_states: States) -> tuple[Tensor, States]:
        """Run the cell over a sequence; computed by `LSTMSequence`, equal to `forward_by_steps`.

        Args:
            inputs: (B, T, I), `T` at least 1.
            hidden_states: the initial `(h, c)`, each (1, B, H).

        Returns:
            The hidden state of every step, (B, T, H), and the last `(h, c)`, each (1, B, H).

        Raises:
            ValueError: the inputs or a state have another shape.
        """
        if inputs.ndim != 3 or inputs.shape[1] == 0 or inputs.shape[2] != self.input_size:
            raise ValueError(f"inputs must be (B, T >= 1, {self.input_size}), got {tuple(inputs.shape)}")
        check_states(hidden_states, (1, inputs.shape[0], self.hidden_size))
        w_i, w_h, b_i, b_h = (
            torch.cat([getattr(self, part + gate) for gate in "oifg"]) for part in ("w_i", "w_h", "b_i", "b_h")
        )
        h, c = (state[0] for state in hidden_states)
        with torch.autocast(inputs.device.type, enabled=False):
            outputs, h, c = LSTMSequence.apply(inputs.to(w_i.dtype), h, c, w_i, w_h, b_i + b_h)
        return outputs, (h[None], c[None])

    def forward_by_steps(self, inputs: Tensor, hidden_states: States) -> tuple[Tensor, States]:
        """The definition of `forward`: `cell` at each step, differentiated by autograd. Slower, and equal."""
        h, c = (state[0] for state in hidden_states)
        outputs = []
        for x in inputs.unbind(dim=1):
            h, c = self.cell(x, h, c)
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h[None], c[None])


class LSTMSequence(torch.autograd.Function):
    """`LSTM.cell` over a sequence with few, large products, and its gradient by hand.

    The gates stand side by side in the order o, i, f, g: one product for the inputs of all steps, one a step for
    the states of all gates, and after the sequence one for each weight's gradient. With `d` for the derivative
    of the loss and `s' = s (1 - s)` for a sigmoid `s`, a step back is

        d c_t  += d h_t * o * (1 - tanh(c_t)^2)
        d gates = [d h_t * tanh(c_t) * o', d c_t * g * i', d c_t * c_{t-1} * f', d c_t * i * (1 - g^2)]
        d h_{t-1} = d gates W_h,    d c_{t-1} = d c_t * f

    (Gers et al. 2000, without truncation). Each factor beside `d h` and `d c` is made for all steps at once.
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
        sigmoids, o, i, f, g = gates_of(gates)
        for t in range(steps):
            gates[t].addmm_(hidden[t], w_h.T)
            sigmoids[t].sigmoid_()
            g[t].tanh_()
            torch.mul(f[t], cells[t], out=cells[t + 1]).addcmul_(i[t], g[t])
            torch.tanh(cells[t + 1], out=tanh_cells[t])
            torch.mul(o[t], tanh_cells[t], out=hidden[t + 1])
        ctx.save_for_backward(x, gates, hidden, cells, tanh_cells, w_i, w_h)
        return hidden[1:].transpose(0, 1).clone(), hidden[-1].clone(), cells[-1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_outputs: Tensor, d_h: Tensor, d_c: Tensor) -> tuple:
        x, gates, hidden, cells, tanh_cells, w_i, w_h = ctx.saved_tensors
        steps, batch, size = tanh_cells.shape
        _, o, i, f, g = gates_of(gates)
        d_gates = torch.empty_like(gates)
        d_sigmoids, d_o, d_i, d_f, d_g = gates_of(d_gates)
        sigmoids = gates[..., : 3 * size]
        torch.addcmul(sigmoids, sigmoids, sigmoids, value=-1, out=d_sigmoids)
        d_o.mul_(tanh_cells)
        d_i.mul_(g)
        d_f.mul_(cells[:-1])
        torch.addcmul(i, i * g, g, value=-1, out=d_g)
        through_cell = torch.addcmul(o, o * tanh_cells, tanh_cells, value=-1)
        of_cell = d_gates[..., size:].unflatten(-1, (3, size))  # i, f, g: the factors of d c
        d_outputs = d_outputs.transpose(0, 1).contiguous()
        d_h, d_c = d_h.clone(), d_c.clone()
        for t in range(steps - 1, -1, -1):
            d_h += d_outputs[t]
            d_c.addcmul_(d_h, through_cell[t])
            d_o[t].mul_(d_h)
            of_cell[t].mul_(d_c[:, None])
            d_c.mul_(f[t])
            torch.mm(d_gates[t], w_h, out=d_h)
        d_gates = d_gates.flatten(0, 1)
        d_inputs = (d_gates @ w_i).view(steps, batch, -1).transpose(0, 1)
        d_w_h = d_gates.T @ hidden[:-1].flatten(0, 1)
        return d_inputs, d_h, d_c, d_gates.T @ x, d_w_h, d_gates.sum(dim=0)


def gates_of(gates: Tensor) -> tuple[Tensor, ...]:
    """Views of gates (T, B, 4H): the three sigmoids together, then o, i, f and g."""
    size = gates.shape[-1] // 4
    return gates[..., : 3 * size], *gates.split(size, dim=-1)


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
        self.hidden_size = hidden_size
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.rnn = nn.LSTM(embedding_size, hidden_size, batch_first=True, bidirectional=True)

    def forward(self, inputs: Tensor, hidden_states: States) -> tuple[Tensor, States]:
        """Encode a batch of token sequences.

        Args:
            inputs: (B, T), token ids.
            hidden_states: the initial `(h, c)`, each (2, B, H), forward direction first.

        Returns:
            The outputs of every step, (B, T, 2H), and the last `(h, c)`, each (2, B, H).

        Raises:
            ValueError: the inputs or a state have another shape.
        """
        check_tokens(inputs)
        check_states(hidden_states, (2, inputs.shape[0], self.hidden_size))
        return self.rnn(self.dropout(self.embedding(inputs)), hidden_states)

    def initial_states(self, batch_size: int, device: torch.device | str | None = None) -> States:
        """Zeros to start from: `(h, c)`, each (2, batch_size, H), on `device` or else the weights' own."""
        weight = self.embedding.weight
        shape = (2, batch_size, self.hidden_size)
        h, c = (torch.zeros(shape, dtype=weight.dtype, device=device or weight.device) for _ in range(2))
        return h, c


class DecoderAttn(nn.Module):
    """LSTM over an encoder's outputs, which self-attention may mix first.

    A soft attention in the sense of Bahdanau et al. (2015): every step of the decoder sees a weighted sum
    of the encoder's outputs. Departure from the paper: the weights come from the encoder's outputs
    themselves, not from the decoder's state, so all steps can be computed at once.

    Args:
        input_size: features of an encoder output, `2H` of the encoder.
        hidden_size: features of the decoder's state, `H`.
        attn: a module called as `attn(inputs, mask)` that keeps the shape of its input, or None.
            (`EncoderDecoder.first_step` also calls `attn(inputs, mask, queries=1)`, for the first position only.)
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
        check_states(hidden_states, (1, inputs.shape[0], self.hidden_size))
        check_mask(mask, inputs.shape[:2])
        x = inputs if self.mlp_attn is None else self.mlp_attn(inputs, mask)
        return self.rnn(x, hidden_states)


class EncoderDecoder(nn.Module):
    """Encoder and, unless `encoder_only`, decoder; the summary of a review is the first step's output.

    Args:
        vocabulary_size: entries of the embedding; entry 0 is padding.
        embedding_size: features of an embedded token, `E`.
        hidden_size: features of a state in one direction, `H`.
        dropout: probability of zeroing a feature of the embedding, in training.
        encoder_only: leave the decoder out (`.decoder` is None).
        attn: the decoder's attention, a module over `2H` features; None for none.

    Raises:
        ValueError: attention without a decoder.
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
        if encoder_only and attn is not None:
            raise ValueError("attn belongs to the decoder: got attn with encoder_only=True; drop one of them")
        self.encoder = Encoder(vocabulary_size, embedding_size, hidden_size, dropout)
        self.decoder = None if encoder_only else DecoderAttn(2 * hidden_size, hidden_size, attn)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> tuple[Tensor, States]:
        """Summarise a batch of token sequences.

        Args:
            inputs: (B, T), token ids.
            mask: (B, T) of any dtype, 1 = token; read by the decoder's attention only.

        Returns:
            The first step's output, (B, H), or (B, 2H) with `encoder_only`; and the last `(h, c)` of the
            decoder, each (1, B, H), or of the encoder, each (2, B, H).

        Raises:
            ValueError: the inputs or the mask have another shape.
        """
        check_tokens(inputs)
        check_mask(mask, inputs.shape)
        x, (h, c) = self.encoder(inputs, self.encoder.initial_states(inputs.shape[0]))
        if self.decoder is not None:
            x, (h, c) = self.decoder(x, (h[0:1], c[0:1]), mask)
        return x[:, 0], (h, c)

    def first_step(self, inputs: Tensor, mask: Tensor | None = None, padded_length: int | None = None) -> Tensor:
        """What `forward` gives first, without the work that it doesn't depend on.

        The first step needs the forward direction's first step only (in front of a decoder also its last state),
        the backward direction in full, one query of the attention and one step of the decoder. Padding beyond
        the longest review need not be there: the backward direction comes to the same states over it in every
        row, so one row is enough, and the forward direction reads the same input over it at each step.

        Args:
            inputs: (B, T), token ids.
            mask: (B, T) of any dtype, 1 = token.
            padded_length: number of tokens to which `forward` would see the inputs padded; None for `T`.

        Returns:
            (B, H), or (B, 2H) with `encoder_only`; equal to `forward(padded inputs, padded mask)[0]`. With
            dropout, equal in distribution.

        Raises:
            ValueError: the inputs or the mask have another shape, the inputs are longer than `padded_length`, or
                an attention would see the padding that is not there.
        """
        check_tokens(inputs)
        check_mask(mask, inputs.shape)
        missing = 0 if padded_length is None else padded_length - inputs.shape[1]
        if missing < 0:
            raise ValueError(f"inputs have {inputs.shape[1]} tokens, more than padded_length={padded_length}")
        attn = None if self.decoder is None else self.decoder.mlp_attn
        if missing and attn is not None and mask is None:
            raise ValueError("attention without a mask sees the padding: give a mask, or no padded_length")
        encoder, padding = self.encoder, self.encoder.embedding.weight[0].detach()
        x = encoder.dropout(encoder.embedding(inputs))
        forward, backward = Direction(encoder.rnn, "l0"), Direction(encoder.rnn, "l0_reverse")
        zeros = tuple(state[:1] for state in encoder.initial_states(len(inputs)))
        h, c = backward.repeat(padding, missing, tuple(state[:, :1] for state in zeros))
        shape = zeros[0].shape
        backwards, _ = backward.run(x.flip(1), (h.expand(shape).contiguous(), c.expand(shape).contiguous()))
        forwards, states = forward.run(x if self.decoder else x[:, :1], zeros)
        if attn is None:
            first = torch.cat([forwards[:, :1], backwards[:, -1:]], dim=-1)
        else:
            first = attn(torch.cat([forwards, backwards.flip(1)], dim=-1), mask, queries=1)
        if self.decoder is None:
            return first[:, 0]
        outputs, _ = Direction(self.decoder.rnn, "l0").run(first, forward.repeat(padding, missing, states))
        return outputs[:, 0]


class Direction:
    """One direction of one layer of an `nn.LSTM`, run by itself on that module's own weights.

    Args:
        rnn: batch first, with biases.
        suffix: `"l0"` or `"l0_reverse"`.
    """

    def __init__(self, rnn: nn.LSTM, suffix: str):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self.weights = [getattr(rnn, f"{name}_{suffix}") for name in names]

    def run(self, inputs: Tensor, states: States) -> tuple[Tensor, States]:
        """(B, T, I) from `(h, c)`, each (1, B, H), in the order given -> (B, T, H) and the last `(h, c)`."""
        return self.lstm(inputs, states, self.weights)

    def repeat(self, token: Tensor, steps: int, states: States) -> States:
        """`(h, c)` after `steps` steps of the same input, `token` (I,): its product with the weights is made once."""
        if steps == 0:
            return states
        weight_ih, weight_hh, bias_ih, bias_hh = self.weights
        constant = torch.addmv(bias_ih, weight_ih, token)
        nothing = token.new_zeros(states[0].shape[1], steps, 1)
        weights = [weight_ih.new_zeros(len(weight_ih), 1), weight_hh, constant, bias_hh]
        return self.lstm(nothing, states, weights)[1]

    @staticmethod
    def lstm(inputs: Tensor, states: States, weights: list[Tensor]) -> tuple[Tensor, States]:
        """The function behind `nn.LSTM.forward`: one layer, one direction, batch first, with biases."""
        outputs, h, c = torch.lstm(inputs, states, weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
        return outputs, (h, c)


def check_tokens(inputs: Tensor) -> None:
    """Refuse (`ValueError`) anything but token ids of shape (B, T) with at least one token."""
    if inputs.ndim != 2 or inputs.shape[1] == 0:
        raise ValueError(f"inputs must be token ids of shape (B, T >= 1), got {tuple(inputs.shape)}")


def check_mask(mask: Tensor | None, shape: torch.Size) -> None:
    """Refuse (`ValueError`) a mask whose shape is not `shape`, (B, T)."""
    if mask is not None and mask.shape != shape:
        raise ValueError(f"mask must be (B, T) = {tuple(shape)}, got {tuple(mask.shape)}")


def check_states(states: States, shape: tuple[int, int, int]) -> None:
    """Refuse (`ValueError`) a pair `(h, c)` whose shapes are not `shape`."""
    for name, state in zip("hc", states, strict=True):
        if state.shape != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(state.shape)}")
