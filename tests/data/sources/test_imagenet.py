"""ImageNet's class names as captions."""

from kaleido_jax.data.sources import imagenet


def test_every_class_has_a_caption_and_only_the_cranes_share_one():
    captions = imagenet.captions_of_wnids()
    assert len(captions) == 1000
    assert captions["n01440764"] == "tench" and captions["n15075141"] == "toilet tissue"
    assert {name for name in captions.values() if "," in name} == {"maillot, tank suit"}
    assert len(imagenet.class_captions()) == 999
    assert [wnid for wnid, name in captions.items() if name == "crane"] == ["n02012849", "n03126707"]
