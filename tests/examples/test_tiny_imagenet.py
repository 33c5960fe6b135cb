import io

import numpy as np
import pytest
from PIL import Image

from examples.tiny_imagenet import main
from kaleido_jax.config.load import load_config
from kaleido_jax.data.sources import open_source
from kaleido_jax.errors import UserError


def packed(path):
    """Four gray photographs of two subclasses of one superclass; the last one's box has no area."""
    parts = []
    for gray in (10, 90, 170, 250):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (gray,) * 3).save(buffer, "jpeg")
        parts.append(np.frombuffer(buffer.getvalue(), np.uint8))
    np.savez(
        path,
        jpeg=np.concatenate(parts),
        offset=np.cumsum([0, *map(len, parts)]),
        label=np.array([0, 1, 0, 1], np.uint8),
        box=np.array([[0, 0, 31, 63], [8, 8, 15, 15], [0, 0, 63, 63], [5, 5, 5, 9]], np.uint8),
        filename=np.array([f"{i}.JPEG" for i in range(4)]),
        name=np.array(["tabby, tabby cat", "Egyptian cat"]),
        super_of_label=np.array([0, 0], np.uint8),
        super_name=np.array(["cat"]),
    )


def test_superclasses_are_captions_and_subclasses_folders_and_names_of_boxes(tmp_path, capsys):
    packed(tmp_path / "x.npz")
    main([f"--npz={tmp_path / 'x.npz'}", f"--out={tmp_path / 'out'}"])
    assert capsys.readouterr().out == f"4 images in {tmp_path / 'out'}\n"
    found = sorted(str(path.relative_to(tmp_path / "out/images")) for path in tmp_path.glob("out/images/*/*/*"))
    assert found == ["cat/Egyptian cat/1.JPEG", "cat/Egyptian cat/3.JPEG", "cat/tabby/0.JPEG", "cat/tabby/2.JPEG"]
    config = load_config("tiny_imagenet:both", **{"data.root": str(tmp_path / "out")})
    source = open_source(config.data, seed=0, image_size=32)
    assert len(source) == 4
    first, second, _, last = (source[i] for i in range(4))
    assert first.caption == "cat" and first.objects[0].phrase == "tabby" and first.objects[0].box == (0, 0, 32, 64)
    assert second.objects[0].box == (8, 8, 16, 16) and last.objects == ()


def test_another_file_and_a_folder_that_is_there_are_refused(tmp_path):
    np.savez(tmp_path / "y.npz", jpeg=np.zeros(3, np.uint8))
    with pytest.raises(UserError, match="expected an .npz with jpeg, offset"):
        main([f"--npz={tmp_path / 'y.npz'}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()
    packed(tmp_path / "x.npz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(UserError):
        main([f"--npz={tmp_path / 'x.npz'}", f"--out={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"
