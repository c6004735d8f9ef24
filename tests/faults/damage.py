"""Copies of a world with samples damaged in several ways."""

import io
import shutil
import tarfile


def copy_with_damage(world, out):
    """Samples of the first training shard damaged; the kind of each by key, as tiny_recipe sees it.

    One more sample has a broken picture, which that recipe does not read.
    """
    shutil.copytree(world, out)
    path = out / "train-000000.tar"
    for index in out.glob("*.index.json"):
        index.unlink()
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    keys = sorted({n.split(".")[0] for n, _ in members})
    harm = {
        (keys[0], "regions.npz"): lambda d: d[:50],
        (keys[1], "json"): lambda d: b"\xff" + d,
        (keys[2], "png"): lambda d: d[: len(d) // 2],
        (keys[3], "regions.npz"): lambda d: None,
    }
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            key, _, extension = name.partition(".")
            data = harm.get((key, extension), lambda d: d)(data)
            if data is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return {keys[0]: "undecodable", keys[1]: "not UTF-8", keys[3]: "missing member"}
