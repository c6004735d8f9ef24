"""Steps on one GPU beside the best peers: ``python benchmarks/gpu.py --json FILE``.

One call, under eight minutes, no network. Six sections: MMLM over 250,002 words, CLIP ViT-B/16,
UNITER's tasks, LXMERT and ViLBERT, large losses, the loader. Each first compares what is fast with
the same in plain float32, then times it, then a peer on the same examples in the same run. What
could not be measured (no GPU, a package that is not there) stays empty. ``--small`` runs all of it
at sizes that any CPU has time for: it shows that the script works, and its times mean nothing.

Needed beside torch: transformers, for sections 1 and 4; open_clip for the peer of section 2.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import gpu_loader
import gpu_losses
import gpu_models
import torch
from measuring import Row, clocks, table, write

#: Seconds after which no further section is begun.
ENOUGH = 420


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; 1 where something fast was not right, 2 where a section failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny sizes, for a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type != "cuda" and not options.small:
        parser.error("there is no GPU; --small runs everything at tiny sizes on the CPU")
    began, rows, failed = time.perf_counter(), list[Row](), list[str]()
    before = clocks() if device.type == "cuda" else {}
    for name in options.only:
        here: list[Row] = []
        reason = "" if time.perf_counter() - began < ENOUGH else "no time was left"
        try:
            if not reason:
                for row in SECTIONS[name](device, options.small):
                    here.append(row)
        except Exception as error:  # the other sections are still worth measuring
            traceback.print_exc()
            failed.append(name)
            reason = f"{type(error).__name__}: {error}".split("\n")[0][:120]
        if reason:
            here.append(Row(name, "section", "", note=reason))
        print(table(here), flush=True)
        rows += here
        if device.type == "cuda":
            torch.cuda.empty_cache()
    wrong = [r for r in rows if r.unit == "error" and r.value is not None and not r.held]
    if options.json:
        write(options.json, device, rows, clocks_before=before, small=options.small,
              seconds=time.perf_counter() - began)  # fmt: skip
    for row in wrong:
        print(f"WRONG: {row.section}: {row.what}: {row.value:.3g}, at most {row.goal:.3g} is right")
    return 1 if wrong else 2 if failed else 0


SECTIONS: dict[str, Callable[[torch.device, bool], Iterator[Row]]] = {
    "mmlm": gpu_models.mmlm,
    "clip": gpu_models.clip,
    "uniter": gpu_models.uniter,
    "crossed": gpu_models.crossed,
    "losses": gpu_losses.losses,
    "loader": gpu_loader.loader,
}

if __name__ == "__main__":
    sys.exit(main())
