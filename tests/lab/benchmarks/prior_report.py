"""What prior_speed.py measured, held against its bars."""

from __future__ import annotations

from statistics import median

from lab.benchmarks.report import table

TIMES_AS_FAST = {"1": 4.0, "4": 7.0}  # at least, by the number of candidates
DIFFERENCE = 1e-4  # relative, at most
MEMORY = 1.15  # of the weights, at most

TEXT = """\
unCLIP Sample Prior compared with diffusers' loop (PriorTransformer, UnCLIPScheduler), with {layers} layers of width 2048, of which Karlo has 20, on the same
random weights and noise: 25 steps, guidance 4, float32, {threads} threads, a prompt that fills all 77 positions. Both run in each of {repetitions} repetitions,
every other time in reverse order. Each repetition gives one ratio, and their median must reach the figure under “at least”. The
difference is the largest one between two numbers of the embeddings, divided by the largest number. Memory is that of the weights plus the peak
beside them while sampling."""


def passed(result: dict) -> bool:
    return all(row[-1] == "pass" for row in rows(result))


def rows(result: dict) -> list[list[str]]:
    made = []
    for count, runs in result["runs"].items():
        ratios = [run["published"] / run["ours"] for run in runs]
        difference = max(run["difference"] for run in runs)
        share = 1 + result["peak"][count] / result["weights"]
        good = median(ratios) >= TIMES_AS_FAST[count] and difference <= DIFFERENCE and share <= MEMORY
        made.append(
            [
                count,
                f"{median(run['published'] for run in runs):.1f}",
                f"{median(run['ours'] for run in runs):.1f}",
                f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{TIMES_AS_FAST[count]:.0f}",
                f"{difference:.1e}",
                f"{share:.3f}",
                "pass" if good else "MISSED",
            ]
        )
    return made


def section(result: dict) -> str:
    header = [
        "candidates",
        "diffusers, s",
        "unCLIP Sample Prior, s",
        "times as fast",
        "at least",
        "difference",
        "memory / weights",
        "",
    ]
    text = TEXT.format(
        layers=result["layers"], threads=result["threads"], repetitions=len(next(iter(result["runs"].values())))
    )
    return f"{text}\n\n{table(header, rows(result))}"
