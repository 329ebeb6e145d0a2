"""One codebook: search, EMA update (paper eq. 9-13), k-means, reset of dead codes; collectives, checks, row functions.

All state is float32 buffers. Functions and methods are pure unless their name ends with an underscore.
"""

from collections.abc import Iterable
from itertools import accumulate
from numbers import Integral

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

# Count of an unused code, as a share of the mean count. Small enough for the next reset to treat the code as dead; not
# zero, because eq. 11-13 would then move the code to the origin.
UNUSED_SHARE = 0.01

# Rows per search: on a CPU few enough for the scores to stay in its cache, elsewhere enough to fill the device.
SEARCHED_ON_CPU, SEARCHED_ELSEWHERE = 1024, 65536

# A code without input whose averaged count N is below so many epsilon, and below a share of one vector, stays where it
# is: eq. 11 would draw it to the origin, by 1 % from there on and all the way in the end.
HELD_BELOW, HELD_AT_MOST = 100, 0.1

# Codes whose mean is this many times as long as their deviation are compared by their differences from it: float32
# loses them in the squares of eq. 1. Of 256 codes in 16 dimensions, 1 in 1,400 was wrong at 30 times, 46 % at 1,000.
FAR_OUT = 30

# Shorter vectors are the rounding error of longer ones: they have no direction that a gradient could turn.
SHORTEST = 1e-6

# How often `uniform_codes` may move codes that no row chooses: of 256 codes of real sounds at most 5 were left over.
REDRAWS = 10

MOST_CODES = 2**24  # of a codebook, far above any

UPDATE_RULES = ("counts", "blend", "blend_unit")


# --- Collectives: no-ops in a single process --------------------------------------------------------------------------
def world_size() -> int:
    """Number of processes; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def this_process() -> tuple[int, int]:
    """Rank of this process and the number of processes."""
    return (dist.get_rank() if world_size() > 1 else 0), world_size()


def is_first_process() -> bool:
    """Whether this is process 0."""
    return world_size() == 1 or dist.get_rank() == 0


def all_reduce_sum_(tensor):
    """Replace `tensor` with its sum over all processes."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_(tensor, source: int = 0):
    """Replace `tensor` with that of process `source`."""
    if world_size() > 1:
        dist.broadcast(tensor, source)
    return tensor


def gather_rows(rows):
    """Rows of all processes, in process order. The number of rows may differ between processes and may be 0.

    Args:
        rows: (n, d) of this process.

    Returns:
        (sum of n, d), equal on every process.
    """
    if world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    counts = [int(count) for count in counts]
    padded = rows.new_zeros(max(counts), rows.shape[1])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


# --- Checks and precision ---------------------------------------------------------------------------------------------
def float32_island(z):
    """Context without autocast on the device of `z`."""
    check_tensor("z", z)
    return torch.autocast(device_type=z.device.type, enabled=False)


def result_dtype(z):
    """The dtype of a quantized z: its own; float32 under autocast, which casts by itself what comes next."""
    return torch.float32 if torch.is_autocast_enabled(z.device.type) else z.dtype


def check_choice(name, value, choices):
    """Raise a `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; it takes one of {', '.join(map(repr, choices))}.")


def check_range(name, value, low, high, meaning=""):
    """Raise a `ValueError` unless low <= value <= high. `meaning` says in the message what `high` is."""
    if not low <= value <= high:
        raise ValueError(f"`{name}` is {value}; it takes {low} to {high}{meaning and f', {meaning}'}.")


def check_size(name, value):
    """Raise a `ValueError` unless `value` is a whole number of codes or dimensions."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= value <= MOST_CODES:
        raise ValueError(f"`{name}` is {value!r}; it takes a whole number from 1 to {MOST_CODES}.")


def check_tensor(name, value):
    """Raise a `TypeError` if `value` is not a tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` is a {type(value).__name__}; it takes a tensor, such as torch.as_tensor({name}).")


def check_vectors(z, dim):
    """Raise a `ValueError` unless z is floating point (..., dim)."""
    check_tensor("z", z)
    if z.ndim < 1 or z.shape[-1] != dim or not z.is_floating_point():
        raise ValueError(f"`z` is {tuple(z.shape)} {z.dtype}; it takes floating point with last dimension {dim}.")


def check_finite(name, tensor):
    """Raise a `ValueError` for NaN or inf; no check while compiling, since a graph does not branch on values."""
    if torch.compiler.is_compiling():
        return
    if not torch.isfinite(tensor.sum(dtype=torch.float32)):  # one reduction: any NaN or inf survives the sum
        raise ValueError(f"`{name}` holds NaN or inf; it takes finite values.")


def sizes_of(codebook_size, num_codebooks):
    """K of each of M codebooks, from one number for all of them or from M numbers.

    Raises:
        ValueError: another number of sizes, or no codebook.
    """
    if not isinstance(num_codebooks, Integral) or num_codebooks < 1:
        raise ValueError(f"`num_codebooks` is {num_codebooks}; it takes a whole number from 1 on.")
    if isinstance(codebook_size, str) or not isinstance(codebook_size, Integral | Iterable):
        raise ValueError(f"`codebook_size` is {codebook_size!r}; it takes whole numbers: one, or one per codebook.")
    sizes = (codebook_size,) * num_codebooks if isinstance(codebook_size, Integral) else tuple(codebook_size)
    for size in sizes:
        check_size("codebook_size", size)
    if len(sizes) != num_codebooks:
        raise ValueError(
            f"`codebook_size` is {list(sizes)}; it takes one number, or one per codebook, {num_codebooks} numbers."
        )
    return sizes


def check_codes(codes, sizes, fewer=False):
    """Codes as int64, whatever integers they are kept as.

    Args:
        sizes: M numbers.
        fewer: take the codes of the first codebooks alone, too, (..., 1) to (..., M).

    Raises:
        ValueError: they are no integers (..., M), those of codebook m in [0, sizes[m]).
    """
    check_tensor("codes", codes)
    num_codebooks = len(sizes)
    fits = codes.ndim >= 1 and (1 if fewer else num_codebooks) <= codes.shape[-1] <= num_codebooks
    if not fits or codes.is_floating_point() or codes.dtype == torch.bool:
        got, takes = f"{tuple(codes.shape)} {codes.dtype}", f"{'1 to ' if fewer else ''}{num_codebooks}"
        some = not fewer and codes.ndim >= 1 and 0 < codes.shape[-1] < num_codebooks
        why = ", the codes of all codebooks: those of the first alone say something in residual quantizers only"
        raise ValueError(f"`codes` is {got}; it takes integers with last dimension {takes}{why if some else ''}.")
    together = len(set(sizes)) == 1  # one look at the values, for which a GPU has to wait, instead of M
    for book, part in enumerate([codes] if together else codes.split(1, dim=-1)):
        if part.numel() > 0 and not 0 <= int(part.min()) <= int(part.max()) < sizes[book]:
            where = "" if together else f" for codebook {book + 1}"
            raise ValueError(f"`codes` is in [{part.min()}, {part.max()}]{where}; it takes [0, {sizes[book] - 1}].")
    return codes.long()


# --- Pure functions on (n, d) rows and (K, d) codes -------------------------------------------------------------------
def flatten_rows(z, dim, mask=None):
    """Vectors z (..., d) as rows (n, d) float32, and `mask` (...,) as their weights (n,), 1 or 0; None without a mask.

    Masked rows (padding of any value) become zero, so that a NaN in them goes no further.
    """
    check_vectors(z, dim)
    rows = z.reshape(-1, dim).float()
    if mask is None:
        return rows, None
    if mask.shape != z.shape[:-1]:
        raise ValueError(f"`mask` is {tuple(mask.shape)}; it takes {tuple(z.shape[:-1])}, one per vector of z.")
    valid = (mask > 0).reshape(-1)  # (n,)
    return torch.where(valid[:, None], rows, 0.0), valid.to(rows.dtype)


def mean_square(error, weight=None):
    """Mean of error (n, d) squared over dimensions and rows of weight 1 (n,): (); 0 without such rows."""
    # The norm reads the rows once; a square would first be written. Its gradient at zero is zero.
    error = torch.linalg.vector_norm(error, dim=-1).square() / error.shape[-1]  # (n,)
    if weight is None:
        return error.sum() / max(len(error), 1)
    return (error * weight).sum() / weight.sum().clamp(min=1)


def code_scores(rows, codes, squares=None):
    """Squared Euclidean distance minus |row|^2, which leaves the order of the codes unchanged: (n, K).

    Args:
        squares: (K,) |code|^2 if already known.
    """
    return torch.addmm(codes.square().sum(-1) if squares is None else squares, rows, codes.t(), alpha=-2)


def search_codes(rows, codes):
    """Lowest score of each row (n,) and its code (n,) int64, the first of equals."""
    # In parts, because the scores of all rows, (n, K), would be the largest tensor of a quantizer. An exported model
    # takes any number of rows, and so cannot have a fixed number of parts.
    size = SEARCHED_ON_CPU if rows.device.type == "cpu" else SEARCHED_ELSEWHERE
    parts = [rows] if torch.compiler.is_exporting() else rows.split(size)
    squares = codes.square().sum(-1)
    found = [code_scores(part, codes, squares).min(-1) for part in parts]  # on CPU twice as fast as argmin
    return torch.cat([lowest for lowest, _ in found]), torch.cat([index for _, index in found])


def centred(rows, codes):
    """Rows and codes less the mean of the codes where that is `FAR_OUT`; elsewhere as they are, bit for bit."""
    mean = codes.mean(0)
    deviation = (codes - mean).square().sum(-1).mean()
    mean = torch.where(mean.square().sum() > FAR_OUT**2 * deviation, mean, 0.0)  # no branch: a GPU would have to wait
    return rows - mean, codes - mean


def nearest_codes(rows, codes):
    """Nearest code of each row: (n,) int64."""
    return search_codes(*centred(rows, codes))[1]


def sum_of_codes(index, books, weights=None):
    """Weighted sum of codes of several codebooks, without a tensor (n, M, d) of their vectors.

    Args:
        index: M tensors (n, k) of codes, one per codebook.
        books: M tensors (K, d).
        weights: M tensors (n, k); None for weights of 1.

    Returns:
        (n, d)
    """
    first = accumulate((len(book) for book in books[:-1]), initial=0)  # row of each codebook's first code
    index = torch.cat([near + start for near, start in zip(index, first, strict=True)], dim=1)
    weights = None if weights is None else torch.cat(weights, dim=1)
    return F.embedding_bag(index, torch.cat(books), per_sample_weights=weights, mode="sum")


def code_statistics(rows, index, num_codes, weight=None):
    """Count n_i and input sum l_i of every code (paper eq. 9).

    Args:
        rows: (n, d) vectors.
        index: (n,) their codes.
        weight: (n,) 1 for valid rows, 0 for padding; None if all are valid.

    Returns:
        counts (K,) and sums (K, d), float32.
    """
    if weight is None:
        weight = rows.new_ones(len(rows))
    else:
        rows = rows * weight[:, None]
    counts = rows.new_zeros(num_codes).index_add_(0, index, weight)
    sums = rows.new_zeros(num_codes, rows.shape[1]).index_add_(0, index, rows)
    return counts, sums


def sample_rows(rows, count, generator=None):
    """`count` different rows, drawn with `generator` (on any device) or the CPU's default one."""
    device = generator.device if generator is not None else "cpu"
    index = torch.randperm(len(rows), generator=generator, device=device)[:count]
    return rows[index.to(rows.device)]


def uniform_codes(rows, num_codes, generator=None):
    """Codes drawn uniformly within the root mean square of the rows, each of them chosen by at least one row.

    The paper (section 3) starts the codes "uniformly based on the variance of the input features", in [-1, 1] because
    inputs are usually normalised, so that codes are used evenly. Here dimension j is drawn from U[-s_j, s_j] with s_j
    the root mean square of the rows, which is [-1, 1] for inputs of unit variance around zero. Vectors of unit length,
    and what earlier stages left over, are far shorter than that. Even so some codes are nearest to no row: they move to
    random rows, as the paper resets codes with N_i < 1, until there are none.

    Args:
        rows: (n, d), n >= num_codes.

    Returns:
        (num_codes, d). Where the rows have fewer different values than there are codes, some stay unused.
    """
    device = generator.device if generator is not None else "cpu"
    draws = torch.rand(num_codes, rows.shape[1], generator=generator, device=device).to(rows) * 2 - 1
    codes = draws * rows.square().mean(0).sqrt()
    for _ in range(REDRAWS):
        unused = nearest_codes(rows, codes).bincount(minlength=num_codes) == 0
        if not unused.any():
            break
        codes[unused] = sample_rows(rows, int(unused.sum()), generator)
    return codes


def kmeans(rows, num_codes, iterations, *, cosine=False, generator=None):
    """Lloyd's algorithm, started from a sample of the rows.

    Empty clusters move to the rows farthest from their centre, so that every code starts where there is data.

    Args:
        rows: (n, d), n >= num_codes.
        cosine: scale centres to length 1 after each step (spherical k-means, as in the reference code).

    Returns:
        (num_codes, d) centres.
    """
    unit = (lambda x: F.normalize(x, dim=-1)) if cosine else (lambda x: x)
    rows = unit(rows)
    centres = sample_rows(rows, num_codes, generator)
    for _ in range(iterations):
        near_rows, near_centres = centred(rows, centres)
        scores, index = search_codes(near_rows, near_centres)
        counts, sums = code_statistics(rows, index, num_codes)
        centres = unit(sums / counts.clamp(min=1)[:, None])
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty) > 0:
            distance = scores + near_rows.square().sum(-1)
            centres[empty] = rows[distance.topk(len(empty)).indices]
    return centres


def unit(rows):
    """Rows (n, d) scaled to length 1. Those that are no longer than `SHORTEST` pass no gradient."""
    scaled = F.normalize(rows, dim=-1)
    if not scaled.requires_grad:
        return scaled
    length = torch.linalg.vector_norm(rows.detach(), dim=-1, keepdim=True)
    return torch.where(length > SHORTEST, scaled, scaled.detach())


def straight_through(source, value):
    """`value` exactly, with its gradient led to `source` instead (T. Morita, 2026, eq. 2, but with q detached)."""
    return value.detach() + (source - source.detach())


# --- State ------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def to_default_(module):
    """Set the tensors of a new module to its `default_state`, unless they are on the meta device."""
    for name, value in module.default_state().items():
        if not getattr(module, name).is_meta:
            getattr(module, name).copy_(value)


class Codebook(nn.Module):
    """K codes of dimension d with their exponential moving averages.

    Buffers, all float32: codes c `embed` (K, d), averaged input sums m `embed_sum` (K, d), averaged counts N
    `cluster_size` (K,), and `initialized` (), 1 once the codes were set from data. A new codebook is uniform in [-1, 1]
    and depends on `seed` alone. `was_set` says the same as `initialized` without a wait for the device.

    Args:
        num_codes: K.
        dim: d.
        decay: g of eq. 10 and 12.
        epsilon: eps of eq. 11, which keeps the division by a zero count finite.
        rule: how `update_` moves the codes. "counts": c = m / N^ (paper eq. 9-13), unless a code has no input and N is
            below `HELD_BELOW` epsilon. "blend" (reference code, residual):
            c <- g c + (1 - g) l2(l / n), and codes without input stay. "blend_unit" (reference code, one codebook): the
            same, then scaled to length 1.
        seed: seed of the new codebook.
    """

    def __init__(self, num_codes, dim, *, decay=0.99, epsilon=1e-5, rule="counts", seed=0):
        super().__init__()
        check_choice("rule", rule, UPDATE_RULES)
        self.num_codes, self.dim = num_codes, dim
        self.decay, self.epsilon, self.rule, self.seed = decay, epsilon, rule, seed
        # An explicit dtype survives loading in bfloat16.
        self.register_buffer("embed", torch.empty(num_codes, dim, dtype=torch.float32))
        self.register_buffer("embed_sum", torch.empty(num_codes, dim, dtype=torch.float32))
        self.register_buffer("cluster_size", torch.empty(num_codes, dtype=torch.float32))
        self.register_buffer("initialized", torch.empty((), dtype=torch.float32))
        self.was_set = False
        to_default_(self)

    def default_state(self):
        """Name -> tensor of the state before any data, on the CPU. Deterministic."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        embed = torch.rand(self.num_codes, self.dim, generator=generator, dtype=torch.float32, device="cpu") * 2 - 1
        ones = torch.ones(self.num_codes, dtype=torch.float32, device="cpu")
        zero = torch.zeros((), dtype=torch.float32, device="cpu")
        return {"embed": embed, "embed_sum": embed.clone(), "cluster_size": ones, "initialized": zero}

    def extra_repr(self):
        return f"{self.num_codes}, {self.dim}, decay={self.decay}, rule={self.rule!r}"

    def nearest(self, rows):
        """Nearest codes of rows (n, d) by Euclidean distance: (n,) int64."""
        return nearest_codes(rows, self.embed)

    def soft_nearest(self, rows, k):
        """The k nearest codes of each row, weighted by inverse squared distance. Weights sum to 1.

        A row that equals a code gives that code all the weight, at any scale.

        Returns:
            index (n, k) int64, nearest first, and weights (n, k).
        """
        rows, embed = centred(rows, self.embed)
        scores, index = code_scores(rows, embed).topk(k, largest=False)
        distance = scores + rows.square().sum(-1, keepdim=True)
        floor = torch.finfo(distance.dtype).eps * rows.square().sum(-1, keepdim=True).clamp(min=1)
        inverse = 1 / torch.maximum(distance, floor)  # rounding can leave a distance just below zero
        return index, inverse / inverse.sum(-1, keepdim=True)

    def averaged(self, counts, sums):
        """The state after one step on counts n (K,) and input sums l (K, d); the codebook stays as it is.

        Returns:
            embed (K, d), embed_sum (K, d), cluster_size (K,).
        """
        decay = self.decay
        cluster_size = decay * self.cluster_size + (1 - decay) * counts  # eq. 10
        if self.rule == "counts":
            embed_sum = decay * self.embed_sum + (1 - decay) * sums  # eq. 12
            total = cluster_size.sum()
            smoothed = (cluster_size + self.epsilon) * total / (total + self.num_codes * self.epsilon)  # eq. 11
            held = (counts == 0) & (cluster_size < min(HELD_BELOW * self.epsilon, HELD_AT_MOST))
            embed = torch.where(held[:, None], self.embed, embed_sum / smoothed[:, None])  # eq. 13
            return embed, embed_sum, cluster_size
        moved = decay * self.embed + (1 - decay) * F.normalize(sums, dim=-1)  # the direction of l is that of l / n
        embed = torch.where((counts > 0)[:, None], moved, self.embed)
        if self.rule == "blend_unit":
            embed = F.normalize(embed, dim=-1)
        return embed, embed * cluster_size[:, None], cluster_size

    @torch.no_grad()
    def update_(self, counts, sums):
        """Take one EMA step on counts (K,) and sums (K, d), summed over processes."""
        embed, embed_sum, cluster_size = self.averaged(counts, sums)
        self.embed.copy_(embed)
        self.embed_sum.copy_(embed_sum)
        self.cluster_size.copy_(cluster_size)

    @torch.no_grad()
    def set_(self, embed, cluster_size):
        """Set codes c_0 (K, d), N_0 = cluster_size (K,) and m_0 = N_0 c_0, so that the EMA starts at the codes."""
        self.embed.copy_(embed)
        self.cluster_size.copy_(cluster_size)
        self.embed_sum.copy_(self.embed * self.cluster_size[:, None])
        self.initialized.fill_(1)
        self.was_set = True

    def note_state_(self):
        """Let `was_set` follow tensors that were loaded, in this process or another. It waits for the device."""
        self.was_set = not self.initialized.is_meta and bool(self.initialized)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.note_state_()

    @torch.no_grad()
    def initialize_(self, rows, method, *, iterations=10, generator=None):
        """Set the codes from rows (n, d), n >= K, with N_0 the number of rows of each code.

        Args:
            method: "kmeans" (cosine for the blend rules, else Euclidean), "sample" (K of the rows) or "uniform" (see
                `uniform_codes`).
            iterations: number of k-means steps.
        """
        if method == "kmeans":
            embed = kmeans(rows, self.num_codes, iterations, cosine=self.rule != "counts", generator=generator)
        elif method == "sample":
            embed = sample_rows(rows, self.num_codes, generator)
        else:
            embed = uniform_codes(rows, self.num_codes, generator)
        counts = nearest_codes(rows, embed).bincount(minlength=self.num_codes).to(rows)
        self.set_(embed, counts.clamp(min=UNUSED_SHARE * len(rows) / self.num_codes))

    @torch.no_grad()
    def reset_dead_(self, rows, threshold, generator=None, min_count=0):
        """Move codes with N < threshold * mean(N) to random rows (n, d), the emptiest first.

        A moved code gets N = its number of rows, scaled to the total of N and at least the threshold, and m = N c.

        Args:
            min_count: with a number above 0, codes that fewer of the rows choose are moved instead, whatever their N.

        Returns:
            int, the number of moved codes.
        """
        scale = self.cluster_size.sum() / max(len(rows), 1)
        use, limit = self.cluster_size, threshold * self.cluster_size.mean()
        if min_count > 0:
            use, limit = self.nearest(rows).bincount(minlength=self.num_codes) * scale, min_count * scale
        order = use.argsort()
        dead = order[use[order] < limit][: len(rows)]
        if len(dead) == 0:
            return 0
        embed, cluster_size = self.embed.clone(), self.cluster_size.clone()
        embed[dead] = sample_rows(rows, len(dead), generator)
        counts = nearest_codes(rows, embed).bincount(minlength=self.num_codes).to(rows)
        cluster_size[dead] = torch.maximum(counts[dead] * scale, limit)
        embed_sum = self.embed_sum.clone()
        embed_sum[dead] = embed[dead] * cluster_size[dead, None]
        self.embed.copy_(embed)
        self.embed_sum.copy_(embed_sum)
        self.cluster_size.copy_(cluster_size)
        return len(dead)

    def broadcast_(self):
        """Take the state of process 0."""
        for buffer in self.buffers(recurse=False):
            broadcast_(buffer)
