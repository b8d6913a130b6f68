"""A run whose data, workdir and samples lie in an object store, from data to weights of others."""

import pytest
import stores

from mmjax import paths
from mmjax.data import build, pipeline, store
from mmjax.error import UserError


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    with stores.google(patch) as url:
        yield url
    patch.undo()


def test_a_data_set_is_built_from_a_store_into_one(bucket, tmp_path):
    src, dst = paths.of(f"{bucket}/photos"), f"{bucket}/data/photos"
    with paths.made(src) as place:
        (place / "sub").mkdir(parents=True)
        for n in range(12):
            stores.picture(place / "sub" / f"{n}.png", n)
            (place / "sub" / f"{n}.txt").write_text(f"picture number {n}")
    found = build.build(str(src), dst, "folder", vocabulary=300)
    assert found["documents"] == 12 and found["source"]["src"] == str(src)
    assert {"dataset.json", "tokenizer.json"} <= {*paths.objects(paths.of(dst))}
    assert build.build(str(src), dst, "folder", vocabulary=300) == found  # nothing to do
    records = pipeline.open_split(dst, "train")
    assert records[0].caption.startswith("picture number")
    assert sum(row["documents"] for row in build.describe(dst).values()) == 12
    build.show(dst, "train", f"{bucket}/sheet.png", 4)
    assert paths.of(f"{bucket}/sheet.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=f"overlaps {src}"):
        build.build(str(src), f"{src}/set", "folder")
    with pytest.raises(UserError, match="holds something else"):
        build.build("digits", str(src))
    (paths.of(dst) / store.info(dst)["splits"]["train"]["files"][0]).unlink()
    with pytest.raises(UserError, match=rf"{dst}/train-.* is missing"):
        pipeline.open_split(dst, "train")[0]
