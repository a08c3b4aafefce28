"""Spans of time steps: wav2vec 2.0."""

import torch
from torch import Tensor

from sslfast._arguments import NonNegativeInt, PositiveInt, checked
from sslfast.kernels.patch_mask.op import smallest_keys
from sslfast.masking._common import SPAN, Stream, fixed_point, source


@checked
def span_mask(
    batch: NonNegativeInt,
    length: PositiveInt,
    start_prob: float = 0.065,
    span: NonNegativeInt = 10,
    *,
    min_spans: int = 2,
    same_number: bool = False,
    lengths: Tensor | None = None,
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    stream: Stream = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Hide spans of consecutive time steps, which may overlap (wav2vec 2.0).

    Baevski et al. 2020, arXiv:2006.11477, section 3.1 and 4.2: a share ``start_prob`` of all time
    steps, drawn without replacement, begins a span; 0.065 and 10 hide about 49 %. Of T steps
    floor(start_prob T + u) begin one, u uniform in [0, 1), and at least ``min_spans``; every span
    lies inside the sequence, and every place where one fits is equally likely.

    fairseq's ``mask_prob`` is ``start_prob`` times ``span`` (0.65), its ``min_masks`` is
    ``min_spans``, its ``require_same_masks`` (on by default there) ``same_number``. It never hides
    the last time step.

    Args:
        batch: B.
        length: T, time steps of the padded batch.
        start_prob: share of the time steps that begin a span.
        span: time steps of a span.
        min_spans: spans that a sample has at least, as far as there are places for them.
        same_number: hide as many time steps in every sample as in the one with fewest, samples
            that hold no span apart; the others show some at random. A mask then depends on the
            batch that its sample is in.
        lengths: int64 [B], time steps of each sample, at most T; what follows is never hidden. A
            sample shorter than a span is left whole.
        seed: see ``sslfast.masking``, as for all that follow.
        step: see ``sslfast.masking``.
        sample_ids: see ``sslfast.masking``.
        stream: see ``sslfast.masking``.
        device: see ``sslfast.masking``.

    Returns:
        mask bool [B, T], true = hidden; samples differ in how many are.

    Raises:
        TypeError: lengths that are not int64.
        ValueError: a ``length`` shorter than a span, a probability outside (0, 1], lengths of
            another shape, a negative min_spans.
    """
    if not 1 <= span <= length:
        raise ValueError(
            f"a sequence of {length} steps holds no span of {span}: choose 1 <= span <= length"
        )
    if not 0 < start_prob <= 1:
        raise ValueError(
            f"start_prob must lie in (0, 1], got {start_prob}; it is fairseq's mask_prob over the "
            "length of a span"
        )
    if min_spans < 0:
        raise ValueError(f"min_spans must not be negative, got {min_spans}")
    if lengths is not None and lengths.dtype != torch.int64:
        raise TypeError(f"lengths must be int64, got {lengths.dtype}")
    if lengths is not None and tuple(lengths.shape) != (batch,):
        raise ValueError(f"lengths must have shape [{batch}], got {list(lengths.shape)}")
    words = source(
        SPAN, batch, seed=seed, step=step, sample_ids=sample_ids, stream=stream, device=device
    )
    drawn = words.words(2 * length + 1 if same_number else length + 1)
    keys, rounding, order = drawn[:, :length], drawn[:, length], drawn[:, length + 1 :]
    if lengths is None:
        lengths = torch.full_like(words.sample_ids, length)
    places = (lengths.to(keys.device).clamp(0, length) - span + 1).clamp_min(0)
    steps = torch.where(places > 0, places + span - 1, 0)
    starts = ((steps * fixed_point(start_prob, 32) + rounding) >> 32).clamp_min(min_spans)
    # Places where no span fits come after all others.
    outside = torch.arange(length, device=keys.device) >= places[:, None]
    begun = smallest_keys(keys + (outside.long() << 32), torch.minimum(starts, places)).cumsum(1)
    before = torch.nn.functional.pad(begun, (span, 0))[:, :length]
    hidden = begun > before
    if not same_number or not batch:
        return hidden
    counts = hidden.sum(1)
    fewest = torch.where(places > 0, counts, length).amin()
    return smallest_keys(order + ((~hidden).long() << 32), counts.minimum(fewest))
