"""What a few seeds can say about a difference: Student's t for paired differences, Holm's correction, power.

Two levels of a switch are trained with the same seeds, so their figures are subtracted seed by seed. With n
seeds, n - 1 degrees of freedom are left, and the mean difference over its standard error follows Student's t:

    interval = mean ± t(95 %, n - 1) * standard deviation / sqrt(n)

With 3 seeds the factor before the standard deviation is 2.5, with 5 seeds 1.2, with 10 seeds 0.7. All
formulas are for whole degrees of freedom (Abramowitz and Stegun, 26.7); no other package is needed.
"""

import math
import statistics
from functools import cache

FEWEST = 3        # seeds for a verdict: the spread of two differences rests on a single number
LEVEL = 0.95      # of all intervals; verdicts are wrong by luck in at most 1 - LEVEL of the tables
FOUND = 0.8       # a difference counts as visible if it is found so often


# --- Student's t --------------------------------------------------------------------------------------------

def student(t, df):
    """The probability that |T| < t, for t >= 0 and df = 1, 2, ... degrees of freedom."""
    angle = math.atan(t / math.sqrt(df))
    term, total = (math.cos(angle), 0.0) if df % 2 else (1.0, 0.0)
    for k in range(2 + df % 2, df + 1, 2):              # cosines to the powers of df's parity below df
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    if df % 2:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def root(function, goal):
    """The x > 0 at which a rising function reaches the goal."""
    low, high = 0.0, 1.0
    while function(high) < goal:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < goal else (low, middle)
    return high


@cache
def quantile(level, df):
    """The t with P(|T| < t) = level: 4.303 for 95 % and 2 degrees of freedom."""
    return root(lambda t: student(t, df), level)


# --- One comparison -----------------------------------------------------------------------------------------

def spread(differences, clips=None):
    """The standard deviation of n >= 2 differences; 0 if they are equal up to the rounding of float32.
    Differences of shares, in points of so many `clips`, have at least the one that is `drawn`."""
    found = statistics.stdev(differences)
    found = found if found > 1e-5 * max(map(abs, differences)) else 0.0
    return max(found, drawn(differences, clips)) if clips else found


def drawn(differences, clips):
    """The least standard deviation of differences of shares, in points of so many clips: a difference of 3 in
    100 needs 3 clips that are judged differently, and with other clips their number varies as a binomial's.
    A few seeds can agree better than that by luck."""
    shares = [abs(difference) / 100 for difference in differences]
    return 100 * math.sqrt(statistics.mean(share * (1 - share) for share in shares) / clips)


def interval(differences, level=LEVEL, clips=None):
    """n >= 2 differences -> both ends of the interval that holds their true mean with this probability.
    clips: see `spread`."""
    n, mean = len(differences), statistics.mean(differences)
    half = quantile(level, n - 1) * spread(differences, clips) / math.sqrt(n)
    return mean - half, mean + half


def p_value(differences, null=0.0, clips=None):
    """How often a true mean of `null` gives a mean as far away as this one. Differences that are all equal
    say nothing about their noise: 1."""
    n, mean, noise = len(differences), statistics.mean(differences), spread(differences, clips)
    return 1 - student(abs(mean - null) * math.sqrt(n) / noise, n - 1) if noise else 1.0


def holm(ps):
    """p-values of a family of comparisons -> corrected ones, in the same order (Holm 1979).

    The smallest of m counts m times, the next one m - 1 times, and so on; none may fall below an earlier
    one. Then at most 5 % of such tables have any corrected value below 0.05 by luck.
    """
    corrected, so_far = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        so_far = max(so_far, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = so_far
    return corrected


# --- Power --------------------------------------------------------------------------------------------------

def power(shift, seeds, level=LEVEL):
    """How often n seeds find a true difference of `shift` standard deviations: the noncentral t, integrated
    over the standard deviation s that is measured where the true one is 1."""
    df, t = seeds - 1, quantile(level, seeds - 1)
    scale = math.log(2) + df / 2 * math.log(df / 2) - math.lgamma(df / 2)
    step, total = 0.004, 0.0
    for i in range(1500):
        s = (i + 0.5) * step
        weight = math.exp(scale + (df - 1) * math.log(s) - df * s * s / 2) * step
        for sign in (1, -1):
            total += weight * (1 + math.erf((sign * shift * math.sqrt(seeds) - t * s) / math.sqrt(2))) / 2
    return total


@cache
def visible(seeds, family=1):
    """The true difference, in standard deviations of the differences, that n seeds find with probability
    FOUND, if Holm's correction counts it as the first of so many comparisons."""
    return root(lambda shift: power(shift, seeds, 1 - (1 - LEVEL) / family), FOUND)
